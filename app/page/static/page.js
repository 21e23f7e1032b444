// From the parts that the server sends (an hour or a day of sums, news, a beat a second) to what stands on the page. What is
// chosen (time, platform, advertiser) stands in the address, so that it can be kept and sent on.

import { Chart } from "./chart.js";
import { $, coded, element, lines, stacked, text } from "./dom.js";
import { showNews } from "./news.js";
import { grouped, heavier, total, values } from "./sums.js";
import { fill } from "./table.js";
import * as words from "./words.js";

const SILENT_SERVER_MS = 6000;
const RECONNECT_MS = 2000;
const CAMPAIGNS_FIRST = 12;
const TONES = 8;
const OTHERS = "(other advertisers)";

const state = {
  parts: {}, // the newest of each: hour or day, news, beat
  span: "hour", platform: "", advertiser: "", measure: "conversions", corrections: "conversions",
  allCampaigns: false,
  tones: new Map(), // platform -> its colour, for as long as the page is open
  skew: 0, // the server's clock minus this one, ms
  heardAt: 0, connected: false,
};
let source;

// ---- What is chosen

function readAddress() {
  const asked = new URLSearchParams(location.search);
  if (asked.get("span") === "day") state.span = "day";
  state.platform = asked.get("platform") ?? "";
  state.advertiser = asked.get("advertiser") ?? "";
  for (const radio of document.getElementsByName("span")) radio.checked = radio.value === state.span;
}

function writeAddress() {
  const said = new URLSearchParams();
  if (state.span !== "hour") said.set("span", state.span);
  if (state.platform) said.set("platform", state.platform);
  if (state.advertiser) said.set("advertiser", state.advertiser);
  history.replaceState(null, "", said.size ? `?${said}` : location.pathname);
}

function listenToChoices() {
  document.querySelector(".filters").addEventListener("change", ({ target }) => {
    state[target.name] = target.value;
    writeAddress();
    if (target.name === "span") connect();
    draw();
  });
  document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
  $("measures").addEventListener("change", ({ target }) => { state.measure = target.value; drawChart(); });
  for (const radio of document.getElementsByName("corrections")) {
    radio.addEventListener("change", () => { state.corrections = radio.value; drawNews(); });
  }
  $("campaigns-more").addEventListener("click", () => { state.allCampaigns = !state.allCampaigns; drawCampaigns(); });
  $("chart-details").addEventListener("toggle", drawChart);
}

// ---- The stream

function connect() {
  source?.close();
  source = new EventSource(`/events/${state.span}`);
  const mine = source;
  for (const name of [state.span, "news", "beat"]) {
    source.addEventListener(name, ({ data }) => {
      if (mine !== source) return;
      state.parts[name] = JSON.parse(data);
      state.heardAt = Date.now();
      state.connected = true;
      if (name === "beat") state.skew = state.parts.beat.now_ms - Date.now();
      ({ hour: draw, day: draw, news: drawNews, beat: drawBeat })[name]();
    });
  }
  source.addEventListener("error", () => {
    state.connected = false;
    drawBeat();
    // the browser tries again by itself, but not after an answer that is no stream
    if (mine === source && source.readyState === EventSource.CLOSED) setTimeout(() => mine === source && connect(), RECONNECT_MS);
  });
}

const now = () => Date.now() + state.skew;

// ---- Sums of what is chosen

const sums = () => state.parts[state.span];
const advertiserOf = (line) => line.advertiser ?? OTHERS;
const isChosen = (line) =>
  (!state.platform || line.platform === state.platform) && (!state.advertiser || advertiserOf(line) === state.advertiser);

/** What is counted once over all platforms; nothing where no journeys are followed, or one platform is looked at. */
const chosenOnce = (found) => (state.platform ? [] : found.once.filter(isChosen));

// ---- Drawing

function draw() {
  const found = sums();
  if (!found) return;
  for (const { name } of grouped(found.series, (line) => line.platform)) {
    if (!state.tones.has(name)) state.tones.set(name, state.tones.size < TONES ? state.tones.size : TONES);
  }
  drawChoices(found);
  drawTotals(found);
  drawChart();
  drawTables(found);
  drawCampaigns();
  drawLimits(found);
  drawNews();
}

function drawChoices(found) {
  options("platform", "All platforms", found.series.map((line) => line.platform));
  const advertisers = found.series.map(advertiserOf);
  options("advertiser", "All advertisers", advertisers);
  $("advertiser-pick").hidden = new Set(advertisers).size < 2 && !state.advertiser;
}

function options(name, all, present) {
  const select = document.querySelector(`select[name=${name}]`);
  const names = [...new Set([...present, state[name]])].filter(Boolean).sort();
  if (select.dataset.names === JSON.stringify(names)) return;
  select.dataset.names = JSON.stringify(names);
  select.replaceChildren(new Option(all, ""), ...names.map((each) => new Option(each, each)));
  select.value = state[name];
}

function drawTotals(found) {
  const sum = total(found.series.filter(isChosen));
  const isHour = state.span === "hour";
  text("title", `What counted in the last ${isHour ? "hour" : "24 hours"}`);
  text("period", found.rows ? `${words.period(found.begins_ms, found.newest_end_ms, now())}, by the time of the events` : "");
  text("conversions", words.number(sum.conversions));
  const once = chosenOnce(found);
  text("conversions-more", [once.length ? "claimed by platforms" : "", sum.clicks ? `${words.share(sum.conversions, sum.clicks)} of clicks` : ""].filter(Boolean).join(", "));
  text("clicks", words.number(sum.clicks));
  text("clicks-more", sum.views ? `${words.share(sum.clicks, sum.views)} of views` : "");
  text("views", words.number(sum.views));
  text("views-more", sum.engaged_views ? `and ${words.plural(sum.engaged_views, "engaged view", "engaged views")}` : "");
  const amounts = values(sum);
  lines($("value"), amounts.length ? amounts.slice(0, 3).map(([currency, each]) => words.money(each, currency)) : ["–"]);
  const more = amounts.length > 3 ? `and ${words.plural(amounts.length - 3, "currency", "currencies")} more` : "";
  const cost = sum.cost ? `for ${words.amount(sum.cost)} of cost` : "";
  text("value-more", [more, once.length ? "claimed" : "", cost].filter(Boolean).join(", "));
  const real = total(once);
  drawOnce("conversions-once", once.length ? [words.number(real.conversions)] : [], "each counted once");
  drawOnce("value-once", values(real).slice(0, 3).map(([currency, each]) => words.money(each, currency)), "each once");
}

/** The truth below what is claimed. */
function drawOnce(id, amounts, what) {
  const node = $(id);
  if (node.hidden !== !amounts.length) node.hidden = !amounts.length;
  lines(node, amounts.length ? [...amounts, what].map((each, at) => (at ? ` ${each}` : each)) : []);
}

function drawChart() {
  const found = sums();
  if (!found) return;
  const chosen = found.series.filter(isChosen);
  const currencies = [...new Set(found.series.flatMap((line) => Object.keys(line.bars)))].filter((name) => name.startsWith("value ")).sort();
  const measures = ["conversions", "clicks", "views", ...currencies];
  if (!measures.includes(state.measure)) state.measure = "conversions";
  measureChoices(measures);
  const count = Math.ceil((found.ends_ms - found.begins_ms) / found.bucket_ms);
  const names = grouped(chosen, (line) => line.platform).map((line) => line.name);
  const stacks = names
    .map((name) => ({ name, tone: state.tones.get(name), values: adds(chosen.filter((line) => line.platform === name), state.measure, count) }))
    .filter((stack) => stack.values.some(Boolean));
  const starts = (at) => found.begins_ms + at * found.bucket_ms;
  const isMoney = state.measure.startsWith("value ");
  const shown = (value) => (isMoney ? words.money(value, state.measure.slice(6)) : words.number(value));
  const label = (at) => {
    const whole = stacks.reduce((sum, stack) => sum + stack.values[at], 0);
    const each = stacks.filter((stack) => stack.values[at]).map((stack) => `${stack.name} ${shown(stack.values[at])}`);
    const kind = isMoney ? "" : ` ${state.measure}`;
    return `${words.moment(starts(at), now())}: ${shown(whole)}${kind}${each.length > 1 ? ` (${each.join(", ")})` : each.length && stacks.length > 1 ? ` (${stacks.find((stack) => stack.values[at]).name})` : ""}${isOpen(at) ? ", may still grow" : ""}`;
  };
  const final = state.parts.beat?.final_ms ?? 0;
  const isOpen = (at) => starts(at) + found.bucket_ms > final;
  const data = {
    count, stacks, label, whole: !isMoney, open: isOpen,
    name: isMoney ? `Value in ${state.measure.slice(6) || "no currency"}` : state.measure[0].toUpperCase() + state.measure.slice(1),
    axis: words.compact,
    tick: (at) => words.clock(starts(at)),
    ordinal: (at) => Math.round(starts(at) / found.bucket_ms),
    tickStep: found.bucket_ms < 900_000 ? 10 : found.bucket_ms < 3_600_000 ? 8 : 1,
  };
  $("plot").hidden = !stacks.length;
  $("plot-empty").hidden = Boolean(stacks.length);
  chart.draw(data);
  const legend = $("legend");
  const items = stacks.map((stack) => [stack.tone, stack.name, shown(stack.values.reduce((a, b) => a + b, 0))]);
  if (legend.dataset.items !== JSON.stringify(items)) {
    legend.dataset.items = JSON.stringify(items);
    legend.replaceChildren(...items.map(([tone, name, sum]) => element("li", {}, element("span", { class: `dot tone-${tone}` }), name, element("b", {}, sum))));
  }
  if ($("chart-details").open) {
    const bars = Array.from({ length: count }, (_, at) => ({ at })).filter(({ at }) => stacks.some((stack) => stack.values[at])).reverse();
    fill($("chart-table"), `${data.name} over time, by platform`, [
      { title: "From", rowHead: true, of: ({ at }) => words.moment(starts(at), now()) },
      ...stacks.map((stack) => ({ title: stack.name, number: true, of: ({ at }) => shown(stack.values[at]) })),
      { title: "All", number: true, of: ({ at }) => shown(stacks.reduce((sum, stack) => sum + stack.values[at], 0)) },
    ], bars, "Nothing counted yet.");
  }
}

function adds(lines, measure, count) {
  const found = new Array(count).fill(0);
  for (const line of lines) line.bars[measure]?.forEach((value, at) => { found[at] += value; });
  return found;
}

function measureChoices(measures) {
  const holder = $("measures");
  if (holder.dataset.names === JSON.stringify(measures)) return;
  holder.dataset.names = JSON.stringify(measures);
  holder.replaceChildren(element("legend", { class: "hidden" }, "Measure"), ...measures.map((name) => {
    const radio = element("input", { type: "radio", name: "measure", value: name });
    radio.checked = name === state.measure;
    const title = name.startsWith("value ") ? `Value ${name.slice(6) || "(no currency)"}` : name[0].toUpperCase() + name.slice(1);
    return element("label", {}, radio, element("span", {}, title));
  }));
}

const EMPTY = "Nothing counted here yet.";
const MOST_MONEY_COLUMNS = 3;

/** A column for each currency while they are few; else one with a line for each. `which`: a word of several such values. */
function moneyColumns(rows, which = "") {
  const currencies = [...new Set(rows.flatMap((row) => Object.keys(row.value)))].sort();
  if (currencies.length > MOST_MONEY_COLUMNS) {
    return [{ title: ["Value", which].filter(Boolean).join(" "), number: true, of: (row) => stacked(values(row).map(([currency, each]) => words.money(each, currency))) }];
  }
  return currencies.map((currency) => ({
    title: [which ? "" : "Value", currency || "(no currency)", which].filter(Boolean).join(" "), number: true, of: (row) => (row.value[currency] ? words.amount(row.value[currency]) : ""),
  }));
}

function costColumns(rows) {
  return rows.some((row) => row.cost) ? [{ title: "Cost", number: true, of: (row) => (row.cost ? words.amount(row.cost) : "") }] : [];
}

function drawTables(found) {
  const platforms = grouped(found.series.filter(isChosen), (line) => line.platform);
  const most = Math.max(...platforms.map((row) => row.conversions), 1);
  fill($("platforms"), "Counts by platform", [
    { title: "Platform", rowHead: true, of: (row) => element("span", { class: "name" }, element("span", { class: `dot tone-${state.tones.get(row.name)}` }), row.name || "(no platform)") },
    { title: "Conversions", number: true, of: (row) => words.number(row.conversions), bar: (row) => row.conversions / most },
    { title: "Of clicks", number: true, of: (row) => words.share(row.conversions, row.clicks) },
    ...moneyColumns(platforms),
    ...costColumns(platforms),
    { title: "Clicks", number: true, of: (row) => words.number(row.clicks) },
    { title: "Views", number: true, of: (row) => words.number(row.views) },
  ], platforms, EMPTY);
  drawActions(found);
}

function drawActions(found) {
  const once = new Map(grouped(chosenOnce(found), (line) => line.action).map((row) => [row.name, row]));
  const named = grouped(found.actions.filter(isChosen), (line) => line.action);
  const unclaimed = [...once.keys()].filter((name) => !named.some((row) => row.name === name));
  const actions = [...named, ...unclaimed.flatMap((name) => grouped([{}], () => name))].map((row) => ({ ...row, once: once.get(row.name) ?? total([]) }));
  const most = Math.max(...actions.map((row) => row.conversions), 1);
  const claimed = { number: true, of: (row) => words.number(row.conversions), bar: (row) => row.conversions / most };
  const action = { title: "Action", rowHead: true, of: (row) => row.name };
  fill($("actions"), "Conversions by action", once.size ? [
    action,
    { title: "Claimed", ...claimed },
    { title: "Each once", number: true, of: (row) => words.number(row.once.conversions) },
    ...moneyColumns(actions, "claimed"),
    ...moneyColumns(actions.map((row) => row.once), "once").map((column) => ({ ...column, of: (row) => column.of(row.once) })),
  ] : [action, { title: "Conversions", ...claimed }, ...moneyColumns(actions)], actions, "No conversions here yet.");
}

function drawCampaigns() {
  const found = sums();
  if (!found) return;
  const chosen = found.campaigns.filter(isChosen);
  const named = chosen.filter((line) => line.campaign !== null).map((line) => ({ ...grouped([line], () => line.campaign)[0], line })).sort(heavier);
  const others = grouped(chosen.filter((line) => line.campaign === null), () => "others")[0];
  const shown = state.allCampaigns ? named : named.slice(0, CAMPAIGNS_FIRST);
  const hidden = named.slice(shown.length);
  const rest = total([...hidden.map((row) => ({ ...row, number: 1 })), ...(others ? [others] : [])]);
  const rows = rest.number ? [...shown, { ...rest, kind: "rest", name: `${words.number(rest.number)} others`, line: {} }] : shown;
  const most = Math.max(...named.map((row) => row.conversions), 1);
  const several = new Set(chosen.map(advertiserOf)).size > 1;
  fill($("campaigns"), "Counts by campaign", [
    { title: "Campaign", rowHead: true, of: (row) => row.name || "(no campaign)" },
    { title: "Platform", of: (row) => row.line.platform ? element("span", { class: "name" }, element("span", { class: `dot tone-${state.tones.get(row.line.platform)}` }), row.line.platform) : "" },
    ...(several ? [{ title: "Advertiser", of: (row) => (row.kind ? "" : advertiserOf(row.line)) }] : []),
    { title: "Conversions", number: true, of: (row) => words.number(row.conversions), bar: (row) => (row.kind ? 0 : row.conversions / most) },
    { title: "Of clicks", number: true, of: (row) => words.share(row.conversions, row.clicks) },
    ...moneyColumns(rows),
    ...costColumns(rows),
    { title: "Clicks", number: true, of: (row) => words.number(row.clicks) },
    { title: "Views", number: true, of: (row) => words.number(row.views) },
  ], rows, EMPTY);
  const all = named.length + (others?.number ?? 0);
  text("campaigns-note", all ? words.plural(all, "campaign", "campaigns") : "");
  $("campaigns-more").hidden = named.length <= CAMPAIGNS_FIRST;
  text("campaigns-more", state.allCampaigns ? `Show the first ${CAMPAIGNS_FIRST}` : `Show the first ${words.number(named.length)}`);
}

function drawLimits(found) {
  const said = [];
  if (found.cut_ms) said.push(`Shown from ${words.moment(found.cut_ms, now())} on: this page holds ${words.number(found.max_rows)} rows (ONECOUNT_PAGE_MAX_ROWS).`);
  if (found.left_out) said.push(`${words.number(found.left_out)} rows of the newest window are left out, its sums are too small: raise ONECOUNT_PAGE_MAX_ROWS.`);
  if (found.other_advertisers) said.push(`${words.plural(found.other_advertisers, "advertiser is", "advertisers are")} added up as ${OTHERS}.`);
  if (state.parts.beat?.unreadable) said.push(`${words.plural(state.parts.beat.unreadable, "record was", "records were")} no row of this release and left out.`);
  text("limits", said.join(" "));
}

const drawNews = () => {
  if (state.parts.news) showNews(state.parts.news, { span: state.span, kind: state.corrections, isChosen, nowMs: now() });
};

// ---- The delay, and whether anything is heard at all

function drawBeat() {
  const beat = state.parts.beat;
  const [kind, said, more] = condition(beat);
  if ($("status").dataset.state !== kind) $("status").dataset.state = kind;
  text("status-text", said);
  const notice = $("notice");
  if (notice.hidden !== !more) notice.hidden = !more;
  if (notice.dataset.kind !== kind) { notice.dataset.kind = kind; notice.className = `notice ${kind}`; }
  coded($("notice"), more ?? "");
  document.body.classList.toggle("stale", kind === "bad");
  if (!beat) return;
  text("fresh-published", beat.published_ms ? words.ago(now() - beat.published_ms) : "–");
  text("fresh-newest", beat.newest_ms ? since(Math.min(beat.newest_ms + beat.window_ms, now())) : "–");
  text("fresh-final", beat.final_ms ? since(beat.final_ms) : "–");
  text("fresh-behind", beat.behind === null ? "–" : words.plural(beat.behind, "record", "records"));
}

const since = (ms) => `${words.moment(ms, now())}, ${words.ago(now() - ms)}`;

function condition(beat) {
  if (!state.connected && !state.heardAt) return ["wait", "Connecting", null];
  if (!state.connected || Date.now() - state.heardAt > SILENT_SERVER_MS) {
    const since = words.preciseClock(state.heardAt);
    return ["bad", "No connection", `No answer from onecount serve since ${since}. The figures are those of then; it is tried again until it answers.`];
  }
  if (beat.trouble) return ["bad", "Kafka refuses", `${beat.trouble}. It is tried again until it works.`];
  if (beat.missing.length) return ["warn", "No topics yet", `There is no topic ${beat.missing.join(", ")}: run \`onecount topics create\`.`];
  if (beat.is_silent) {
    const since = beat.answered_ms ? `since ${words.moment(beat.answered_ms, now(), true)}` : "yet";
    return ["bad", "No answer from Kafka", `No answer from Kafka ${since}. The figures are the last ones that were read; reading goes on by itself once it answers.`];
  }
  if (beat.share < 1 && beat.behind !== 0) return ["wait", `Reading, ${Math.floor(beat.share * 100)} %`, null];
  if (!beat.newest_ms) return ["wait", "Nothing counted yet", "Nothing counted yet. Start workers with `onecount run counter` and `onecount run aggregator`, and send events, made-up ones with `onecount generate --rate 200 --duration 60`."];
  if (now() - beat.newest_ms - beat.window_ms > 3_600_000) {
    return ["calm", "Up to date", `The newest event that was counted is of ${words.moment(beat.newest_ms, now())}. Either no events come, or history is being imported; "last" means up to then.`];
  }
  return ["good", "Live", null];
}

const chart = new Chart($("plot"), (index) => {
  const said = index === null ? "" : chart.data.label(index);
  text("readout", said || " ");
});

readAddress();
listenToChoices();
text("zone", words.zone);
connect();
setInterval(drawBeat, 1000);
