/* onecount.js: tells the gateway of ad clicks, visits and conversions on a page (docs/gateway.md).
 * What is served is onecount.min.js, made from this file by `python -m rjsmin < onecount.js > onecount.min.js`. */
(() => {
  const {src, dataset: data} = document.currentScript;
  const to = new URL("v1/browser?advertiser_id=" + encodeURIComponent(data.advertiser), src).href;
  const known = {
    gclid: "google_ads", gbraid: "google_ads", wbraid: "google_ads", fbclid: "meta", ttclid: "tiktok",
    li_fat_id: "linkedin", msclkid: "microsoft_ads"
  };
  const query = new URLSearchParams(location.search);
  const refuses = navigator.globalPrivacyControl || navigator.doNotTrack == 1;
  let consent = data.consent; // wait: events wait until the page has asked
  let queue = [], busy, zero, tries = 0, last = 0;

  const now = () => Math.round(performance.now());
  const random = () =>
    btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(18)))).replace(/\+/g, "-").replace(/\//g, "_");

  // What the visitor is called until the gateway's cookie is there. Kept for the tab, so that its pages agree.
  const once = random();
  const visitor = () => {
    try {
      if (consent == "denied" || consent == "wait" || refuses) sessionStorage.removeItem("oc_id");
      else return sessionStorage.oc_id || (sessionStorage.oc_id = once);
    } catch {}
    return once;
  };

  // Once the gateway has told its time, all times go by it, so that events keep their order; until then they tell their age.
  const pack = events => {
    const user_id = visitor();
    const said = consent == "wait" ? "denied" : consent;
    return JSON.stringify(events.map(({at, ...event}) => ({
      user_id, consent: said, ...event, ...(zero ? {event_time: zero + at} : {age_ms: Math.max(0, now() - at)})
    })));
  };

  const post = body => fetch(to, {method: "POST", body, credentials: "include", keepalive: true});

  // One request at a time, so that events come in their order and the first answer brings the cookie for the others.
  const send = () => {
    if (busy || !queue.length || consent == "wait") return;
    const events = queue.slice(0, 20);
    const begun = now();
    busy = 1;
    post(pack(events))
      .then(answer => answer.ok
        ? answer.json().then(({time}) => zero ||= time - begun)
        : answer.status < 500 && answer.status != 429)
      .catch(() => 0)
      .then(taken => {
        busy = 0;
        if (taken || ++tries > 6) {
          queue = queue.filter(event => !events.includes(event));
          tries = 0;
          send();
        } else setTimeout(send, 1e3 * 2 ** tries);
      });
  };

  // The page goes: whatever is not acknowledged is sent (once more; its event_id makes it count once).
  const leave = () => {
    if (!queue.length) return;
    const body = pack(queue.slice(-100));
    if (!navigator.sendBeacon || !navigator.sendBeacon(to, body)) post(body).catch(() => {});
    if (!busy) queue = [];
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
  const text = name => (query.get(name) || "").slice(0, 128) || null;

  // The last click id of the address is that of the click: a shared link keeps those of former ones before it.
  const name = [...query.keys()].filter(key => known[key] && query.get(key)).pop();
  const fresh = (performance.getEntriesByType("navigation")[0] || {}).type == "navigate";
  const platform = name ? known[name] : text("utm_campaign") && fresh && data.platform;
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

  const {q = []} = window.onecount || {}; // calls that came before this script
  window.onecount = api;
  for (const call of q) api(...call);
  addEventListener("visibilitychange", () => document.visibilityState == "hidden" && leave());
  addEventListener("pagehide", leave);
})();
