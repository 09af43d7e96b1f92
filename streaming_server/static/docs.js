// The API reference: filter, links to single operations, copying, and trying a request. Reading needs none of it.

import { byId, copyText, put } from "./dom.js";

const EXAMPLE_ADDRESS = "http://localhost:8000/";
const operations = [...document.querySelectorAll(".operation")];
const texts = new Map();

// Searched text of an operation, with its names and descriptions.
function textOf(operation) {
  if (!texts.has(operation)) texts.set(operation, operation.textContent.toLowerCase());
  return texts.get(operation);
}

function filter() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const operation of operations) {
    operation.hidden = !words.every((word) => textOf(operation).includes(word));
    count += operation.hidden ? 0 : 1;
  }
  for (const group of document.querySelectorAll(".group")) group.hidden = !group.querySelector(".operation:not([hidden])");
  byId("none").hidden = count > 0;
  put("found", words.length ? `${count} of ${operations.length}` : "");
}

// Opens the operation that the address names.
function follow() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  if (target.hidden) {
    byId("filter").value = "";
    filter();
  }
  if (target.matches("details")) target.open = true;
  target.scrollIntoView();
}

document.addEventListener("click", async ({ target }) => {
  const operation = target.closest?.(".operation");
  if (target.matches(".copy")) {
    const copying = copyText(operation.querySelector("pre").textContent);
    target.textContent = await copying.then(() => "Copied", () => "Not copied");
    setTimeout(() => (target.textContent = "Copy"), 1500);
  } else if (target.matches(".try")) {
    const { offer } = await import("./try_it.js");
    offer(operation);
  }
});
byId("filter").addEventListener("input", filter);
addEventListener("hashchange", follow);

const here = new URL(".", location.href).href;
for (const example of document.querySelectorAll("pre code")) {
  example.textContent = example.textContent.replace(EXAMPLE_ADDRESS, here);
}
document.documentElement.classList.add("has-script");
follow();
