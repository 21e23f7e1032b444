/* onecount.js: tells the gateway of ad clicks, visits and conversions on a page (docs/gateway.md).
 * What is served is onecount.min.js, made from this file by `python -m rjsmin < onecount.js > onecount.min.js`. */
(() => {
  const {src, dataset: settings} = document.currentScript;
  const address = new URL("v1/browser?advertiser_id=" + encodeURIComponent(settings.advertiser), src).href;
  const platforms = {
    gclid: "google_ads", gbraid: "google_ads", wbraid: "google_ads", fbclid: "meta", ttclid: "tiktok",
    li_fat_id: "linkedin", msclkid: "microsoft_ads"
  };
  const query = new URLSearchParams(location.search);
  const objects = navigator.globalPrivacyControl || navigator.doNotTrack == 1;
  let consent = settings.consent; // wait: events wait until the page has asked
  let queue = [];
  let sending = false;
  let tries = 0;
  let last = 0;

  const now = () => Math.round(performance.now());
  const random = () =>
    btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(18)))).replace(/\+/g, "-").replace(/\//g, "_");

  // What the visitor is called until the gateway's cookie is there. Kept for the tab, so that its pages agree.
  const once = random();
  const visitor = () => {
    try {
      if (consent == "denied" || consent == "wait" || objects) sessionStorage.removeItem("oc_id");
      else return sessionStorage.oc_id || (sessionStorage.oc_id = once);
    } catch {}
    return once;
  };

  const pack = (events) => {
    const user_id = visitor();
    const said = consent == "wait" ? "denied" : consent;
    return JSON.stringify(events.map(({at, ...event}) =>
      ({user_id, consent: said, ...event, age_ms: Math.max(0, now() - at)})));
  };

  const post = (body) => fetch(address, {method: "POST", body, credentials: "include", keepalive: true});

  // One request at a time, so that events come in their order and the first answer brings the cookie for the others.
  const send = () => {
    if (sending || !queue.length || consent == "wait") return;
    const events = queue.slice(0, 20);
    sending = true;
    post(pack(events))
      .then((answer) => answer.status < 500 && answer.status != 429, () => false)
      .then((taken) => {
        sending = false;
        if (taken || ++tries > 6) {
          queue = queue.filter((event) => !events.includes(event));
          tries = 0;
          send();
        } else setTimeout(send, 1000 * 2 ** tries);
      });
  };

  // The page goes: whatever is not acknowledged is sent (once more; its event_id makes it count once).
  const leave = () => {
    if (!queue.length) return;
    const body = pack(queue.slice(-100));
    if (!navigator.sendBeacon || !navigator.sendBeacon(address, body)) post(body).catch(() => {});
    if (!sending) queue = [];
  };

  const track = (event_type, fields) => {
    last = Math.max(now(), last + 1);
    queue.push({event_id: random(), ...fields, event_type, at: last});
    send();
  };

  const api = (what, fields) => {
    if (what == "consent") {
      consent = fields;
      visitor();
      send();
    } else track(what, fields);
  };

  const path = location.pathname.slice(0, 2048);
  const text = (name) => (query.get(name) || "").slice(0, 128) || null;

  // The last click id of the address is that of the click: a shared link keeps those of former ones before it.
  const name = [...query.keys()].filter((key) => platforms[key] && query.get(key)).pop();
  const isNew = (performance.getEntriesByType("navigation")[0] || {}).type == "navigate";
  const platform = name ? platforms[name] : text("utm_campaign") && isNew && settings.platform;
  if (platform) {
    const click = name && query.get(name).slice(0, 512);
    track("click", {
      ...(click && {event_id: click.length > 128 ? click.slice(0, 64) + click.slice(-64) : click, click_id: click}),
      platform,
      campaign_id: text("utm_id") || text("gad_campaignid") || text("utm_campaign") || "unknown",
      ad_id: text("utm_content"),
      source: text("utm_source"),
      medium: text("utm_medium"),
      landing_page: path
    });
  }
  track("visit", {
    page: path,
    referrer: document.referrer.split(/[?#]/)[0].slice(0, 2048) || null
  });

  const waiting = (window.onecount || {}).q || [];
  window.onecount = api;
  for (const call of waiting) api(...call);
  addEventListener("visibilitychange", () => document.visibilityState == "hidden" && leave());
  addEventListener("pagehide", leave);
})();
