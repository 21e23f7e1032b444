// Sums over lines that the server sends; money by currency, and never over currencies.

/** One line for each value of `name(line)`, with the sums of all its lines, the weightiest first. */
export function grouped(lines, name) {
  const found = new Map();
  for (const line of lines) {
    const key = name(line);
    if (!found.has(key)) found.set(key, { name: key, line, views: 0, engaged_views: 0, clicks: 0, conversions: 0, cost: 0, number: 0, value: {} });
    add(found.get(key), line);
  }
  return [...found.values()].sort(heavier);
}

function add(sum, line) {
  for (const name of ["views", "engaged_views", "clicks", "conversions", "cost", "number"]) sum[name] += line[name] ?? 0;
  for (const [currency, amount] of Object.entries(line.value ?? {})) sum.value[currency] = (sum.value[currency] ?? 0) + amount;
}

export const heavier = (a, b) => b.conversions - a.conversions || b.clicks - a.clicks || b.views - a.views || String(a.name).localeCompare(String(b.name));
export const total = (lines) => grouped(lines, () => "all")[0] ?? grouped([{}], () => "all")[0];
export const values = (sum) => Object.entries(sum.value).sort((a, b) => b[1] - a[1]);
