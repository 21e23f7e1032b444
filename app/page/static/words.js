// Numbers, times and names as people read them.

const LOCALE = "en-GB";
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const percent = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const plainMoney = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const clockFormat = new Intl.DateTimeFormat(LOCALE, { hour: "2-digit", minute: "2-digit" });
const preciseFormat = new Intl.DateTimeFormat(LOCALE, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const dayFormat = new Intl.DateTimeFormat(LOCALE, { day: "numeric", month: "short" });
const yearFormat = new Intl.DateTimeFormat(LOCALE, { day: "numeric", month: "short", year: "numeric" });
const currencies = new Map();

export const zone = new Intl.DateTimeFormat().resolvedOptions().timeZone;
export const number = (value) => whole.format(value);
export const compact = (value) => short.format(value);
export const clock = (ms) => clockFormat.format(ms);
export const preciseClock = (ms) => preciseFormat.format(ms);

/** A share of nothing is a dash. */
export const share = (part, of) => (of > 0 ? percent.format(part / of) : "–");

/** An amount in its currency; amounts that were sent without one say so. */
export function money(amount, currency) {
  if (!currency) return `${plainMoney.format(amount)} (no currency)`;
  if (!currencies.has(currency)) {
    const style = { style: "currency", currency, currencyDisplay: "code" };
    currencies.set(currency, new Intl.NumberFormat("en", style));
  }
  return currencies.get(currency).format(amount);
}

export const amount = (value) => plainMoney.format(value);

/** The day, where it is not today's; the year, where it is not this one's. */
export function day(ms, nowMs) {
  const then = new Date(ms);
  const now = new Date(nowMs);
  if (then.toDateString() === now.toDateString()) return "";
  return (then.getFullYear() === now.getFullYear() ? dayFormat : yearFormat).format(then);
}

export function moment(ms, nowMs, precise = false) {
  const date = day(ms, nowMs);
  const time = precise ? preciseClock(ms) : clock(ms);
  return date ? `${date}, ${time}` : time;
}

/** From when to when; with both days where they differ. */
export function period(fromMs, toMs, nowMs) {
  const from = moment(fromMs, nowMs);
  if (new Date(fromMs).toDateString() === new Date(toMs).toDateString()) return `${from} to ${clock(toMs)}`;
  return `${from} to ${day(toMs, nowMs) || dayFormat.format(toMs)}, ${clock(toMs)}`;
}

/** How long ago, in one unit. */
export function ago(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 1) return "now";
  if (seconds < 90) return `${seconds} s ago`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 36 * 3600) return `${Math.round(seconds / 3600)} h ago`;
  return `${number(Math.round(seconds / 86400))} days ago`;
}

export const plural = (count, one, many) => `${number(count)} ${count === 1 ? one : many}`;

export const STATUS = {
  counted: "counted",
  uncounted: "not counted (one per touch)",
  unattributed: "no touch found",
  duplicate: "duplicate order",
  retracted: "retracted",
  withdrawn: "credited on a platform now",
};

export const REASON = {
  null_record: ["No value", "a record without a value"],
  empty: ["Empty", "a record whose value is empty"],
  too_large: ["Too large", "more than 256 KiB"],
  unknown_schema: ["Unknown schema", "written by a schema that the registry does not have"],
  undecodable: ["Not of its schema", "bytes that are no event of the schema they name"],
  invalid_utf8: ["Not UTF-8", "bytes that are no text"],
  invalid_json: ["Not JSON", "text that is no JSON, or breaks off"],
  too_deep: ["Nested too deep", "more than 64 levels"],
  not_an_object: ["Not an object", "JSON, but no {…}"],
  duplicate_key: ["A key twice", "which of its values is meant is unknown"],
  missing_field: ["Field missing", "a field that events of this type need"],
  invalid_field: ["Field invalid", "a wrong type, or out of its bounds"],
  invalid_time: ["Time invalid", "neither epoch milliseconds nor RFC 3339 with a zone"],
  unknown_event_type: ["Unknown event type", "the contract has no such type"],
  unknown_platform: ["Unknown platform", "the policy has no such platform"],
  key_mismatch: ["Wrong key", "the record's key is not its user_id"],
  too_old: ["Too old", "sent later than the policy's max_event_age"],
  in_the_future: ["In the future", "ahead of its record by more than max_clock_skew"],
  beyond_correction_horizon: ["Too late to correct", "older than the policy's correction_horizon"],
  click_not_found: ["Click not found", "names a click id that no accepted click had until park_for was over"],
  adjustment_twice: ["Adjusted twice", "an earlier adjustment of this order stands"],
  adjustment_too_old: ["Adjusted too late", "past the policy's adjustment_window"],
  adjustment_precedes_conversion: ["Adjusted too early", "an adjustment from before its conversion"],
  adjustment_in_another_currency: ["Another currency", "a restatement in another currency than its order's"],
  other: ["Another reason", "of a newer release"],
};
