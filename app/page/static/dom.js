// Text and elements. What says the same as before is left alone.

export const $ = (id) => document.getElementById(id);

export function text(id, said) {
  const node = $(id);
  if (node.textContent !== said) node.textContent = said;
}

/** Text in which what stands between backticks is code. */
export function coded(node, said) {
  if (node.dataset.said === said) return;
  node.dataset.said = said;
  node.replaceChildren(...said.split("`").map((part, at) => (at % 2 ? element("code", {}, part) : part)));
}

export function lines(node, said) {
  const key = JSON.stringify(said);
  if (node.dataset.key === key) return;
  node.dataset.key = key;
  node.replaceChildren(...said.map((each) => element("span", {}, each)));
}

export function stacked(parts) {
  return element("span", { class: "stack" }, ...parts.map((part) => (part instanceof Node ? part : element("span", {}, part))));
}

export function element(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== ""));
  return node;
}
