// Draws /openapi.json for readers. Knows OpenAPI, and no route of this server.

import { element, schemaFields, text } from "./docs-fields.js";
import { tryIt } from "./docs-try.js";

const METHODS = ["get", "post", "put", "patch", "delete"];

function operationsOf(api) {
  return Object.entries(api.paths).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => ({ ...item[method], path, method: method.toUpperCase() })),
  );
}

function parameterFields(api, parameters) {
  const groups = [["path", "Path"], ["query", "Query"], ["header", "Request headers"]];
  return groups.flatMap(([place, title]) => {
    const named = parameters.filter((parameter) => parameter.in === place);
    if (!named.length) return [];
    const properties = Object.fromEntries(
      named.map(({ name, description, schema }) => [name, { ...schema, description }]),
    );
    const required = named.filter((parameter) => parameter.required).map((parameter) => parameter.name);
    return [element("h3", {}, title), schemaFields(api, { properties, required })];
  });
}

function bodyFields(api, body) {
  if (!body) return [];
  return Object.entries(body.content).flatMap(([mediaType, { schema }]) => [
    element("h3", {}, "Body ", element("code", {}, mediaType)),
    schemaFields(api, schema),
  ]);
}

function answer(api, [status, { description, content = {}, headers = {} }]) {
  const own = Object.entries(headers).filter(([, header]) => !header.$ref);
  const schema = Object.values(content).map((entry) => entry.schema).find(Boolean);
  const fields = schema && schemaFields(api, schema);
  return element(
    "div",
    { className: "answer" },
    element("p", {}, element("span", { className: "status" }, status), " ", ...text(description)),
    element("p", { className: "kind" }, Object.keys(content).join(", ")),
    own.length && element(
      "details",
      { className: "answer-fields" },
      element("summary", {}, `Headers: ${own.map(([name]) => name).join(", ")}`),
      element("dl", { className: "fields" }, ...own.map(([name, header]) =>
        element("div", {}, element("dt", {}, element("code", {}, name)), element("dd", {}, ...text(header.description))),
      )),
    ),
    fields?.childElementCount && element("details", { className: "answer-fields" }, element("summary", {}, "Fields"), fields),
  );
}

function answers(api, responses) {
  const all = Object.entries(responses);
  const refused = all.filter(([status]) => Number(status) >= 400);
  return [
    element("h3", {}, "Answers"),
    ...all.filter(([status]) => Number(status) < 400).map((entry) => answer(api, entry)),
    refused.length && element(
      "details",
      { className: "refusals" },
      element("summary", {}, `Refusals: ${refused.map(([status]) => status).join(", ")}`),
      ...refused.map((entry) => answer(api, entry)),
    ),
  ];
}

function card(api, operation) {
  const { method, path, summary, description } = operation;
  const details = element(
    "details",
    { className: "operation", id: operation.operationId },
    element(
      "summary",
      {},
      element("span", { className: `method ${method}` }, method),
      element("span", { className: "path" }, path),
      element("span", { className: "says" }, summary),
    ),
  );
  const draw = () => details.append(element(
    "div",
    { className: "inside" },
    description && element("p", {}, ...text(description)),
    ...parameterFields(api, operation.parameters ?? []),
    ...bodyFields(api, operation.requestBody),
    ...answers(api, operation.responses),
    ...tryIt(api, operation),
  ));
  details.addEventListener("toggle", draw, { once: true });
  return details;
}

function openNamed() {
  const details = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!details?.matches("details")) return;
  details.open = true;
  details.scrollIntoView();
  details.querySelector("summary").focus({ preventScroll: true });
}

function draw(api) {
  document.getElementById("version").textContent = api.info.version;
  document.getElementById("introduction").textContent = api.info.description;
  const operations = operationsOf(api);
  const main = document.querySelector("main");
  main.replaceChildren();
  for (const { name, description } of api.tags) {
    const own = operations.filter((operation) => operation.tags.includes(name));
    main.append(element(
      "section",
      {},
      element("h2", {}, name),
      element("p", {}, ...text(description)),
      ...own.map((operation) => card(api, operation)),
    ));
    document.querySelector("nav").append(
      element("h2", {}, name),
      element("ul", {}, ...own.map(({ operationId, method, path }) => element(
        "li",
        {},
        element("a", { href: `#${operationId}` }, element("span", { className: `method ${method}` }, method), ` ${path}`),
      ))),
    );
  }
  addEventListener("hashchange", openNamed);
  openNamed();
}

document.getElementById("key-form").addEventListener("submit", (event) => event.preventDefault());
try {
  const response = await fetch("openapi.json");
  if (!response.ok) throw new Error(`openapi.json: ${response.status}`);
  draw(await response.json());
} catch (error) {
  document.querySelector("[role=status]").textContent = `The description could not be loaded (${error.message}).`;
}
