// What was corrected, and what was refused.

import { $, element, text } from "./dom.js";
import { fill } from "./table.js";
import * as words from "./words.js";

/** news: the part of the page; span: "hour" or "day"; kind: corrections of "conversions" or of "counts". */
export function showNews(news, { span, kind, isChosen, nowMs }) {
  text("corrected-conversions", words.number(news.corrected[span].conversions ?? 0));
  text("corrected-counts", words.number(news.corrected[span].counts ?? 0));
  const isCounts = kind === "counts";
  const rows = news[kind].filter(isChosen);
  fill($("corrections"), `Newest corrections of ${isCounts ? "final counts" : "conversions"}`, [
    { title: "Corrected", className: "nowrap", of: (row) => words.moment(row.at_ms, nowMs, true) },
    { title: isCounts ? "Count" : "Conversion", rowHead: true, of: (row) => subject(row, nowMs) },
    { title: "What changed", of: (row) => element("span", { class: "inline" }, ...changes(row, isCounts, nowMs)) },
    { title: "Revision", number: true, of: (row) => (row.revision ? words.number(row.revision) : "") },
  ], rows, isCounts ? "No final count has changed. Late events change counts after their window is final." : "No conversion has been corrected. Late clicks, retractions and restatements correct conversions.");
  showRefused(news, span, nowMs);
}

function subject(row, nowMs) {
  const where = [row.platform === "all" ? "each counted once" : row.platform || "no platform", row.campaign].filter(Boolean).join(", ");
  const when = row.event_ms ? `of ${words.moment(row.event_ms, nowMs)}` : "";
  return element("span", {}, element("strong", {}, row.action || "views and clicks"), element("span", { class: "quiet" }, ` ${where} ${when}`));
}

const CHANGED = { campaign: "campaign", ad: "ad", touch: "credited", touch_time: "touch of", currency: "currency" };

function changes(row, isCounts, nowMs) {
  if (row.changes === null) return [element("span", {}, `now ${words.STATUS[row.status] ?? row.status}`, element("span", { class: "quiet" }, " what it was before is older than this page has read"))];
  if (!row.changes.length) return [element("span", { class: "quiet" }, "another touch of the same campaign, or its policy version")];
  return row.changes.map(([name, before, after]) => {
    const say = teller(name, row, nowMs);
    const title = isCounts && name !== "value" ? name.replace("_", " ") : CHANGED[name] ?? "";
    return element("span", { class: `change ${name === "status" ? `to-${after}` : ""}` }, title ? `${title} ` : "", element("s", {}, say(before)), element("span", { class: "arrow", "aria-label": "became" }, " → "), element("b", {}, say(after)));
  });
}

function teller(name, row, nowMs) {
  if (name === "status") return (value) => words.STATUS[value] ?? value;
  if (name === "value") return (value) => words.money(value, row.currency);
  if (name === "cost") return words.amount;
  if (name === "touch_time") return (value) => (value ? words.moment(value, nowMs, true) : "none");
  return (value) => (typeof value === "number" ? words.number(value) : value || "none");
}

function showRefused(news, span, nowMs) {
  const rows = news.refused.filter((line) => line[span]).sort((a, b) => b[span] - a[span] || a.reason.localeCompare(b.reason));
  const whole = rows.reduce((sum, line) => sum + line[span], 0);
  const most = Math.max(...rows.map((line) => line[span]), 1);
  text("refused-note", whole ? `${words.number(whole)} on all platforms` : "");
  fill($("refused"), "Refused events by reason", [
    { title: "Reason", rowHead: true, of: (row) => {
      const [title, why] = words.REASON[row.reason] ?? words.REASON.other;
      return element("span", {}, element("strong", {}, title), row.field ? element("code", {}, row.field) : "", element("span", { class: "quiet below" }, why));
    } },
    { title: "Events", number: true, of: (row) => words.number(row[span]), bar: (row) => row[span] / most },
    { title: "Newest", number: true, className: "nowrap", of: (row) => words.moment(row.at_ms, nowMs, true) },
  ], rows, "No event was refused.");
}
