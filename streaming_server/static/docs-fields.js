// JSON schemas as lists of fields, and the few lines that make elements. Knows no operation.

export function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter((child) => child || child === ""));
  return made;
}

// A sentence in which `backquotes` set code.
export function text(sentence = "") {
  return sentence.split("`").map((part, place) => (place % 2 ? element("code", {}, part) : part));
}

export function resolve(api, schema) {
  if (!schema?.$ref) return schema ?? {};
  const target = schema.$ref.slice(2).split("/").reduce((found, key) => found[key], api);
  const { $ref, ...own } = schema;
  return { ...target, ...own };
}

function number(value) {
  return Math.abs(value) === 2 ** 63 ? `${value < 0 ? "-" : ""}2^63` : String(value);
}

function range({ minimum, maximum, exclusiveMinimum, exclusiveMaximum }) {
  if (minimum !== undefined && maximum !== undefined) return `${number(minimum)} to ${number(maximum)}`;
  const low = minimum !== undefined ? `≥ ${number(minimum)}` : exclusiveMinimum !== undefined && `> ${number(exclusiveMinimum)}`;
  const high = maximum !== undefined ? `≤ ${number(maximum)}` : exclusiveMaximum !== undefined && `< ${number(exclusiveMaximum)}`;
  return [low, high].filter(Boolean).join(", ");
}

function count({ minItems, maxItems }) {
  if (minItems !== undefined && minItems === maxItems) return `exactly ${minItems}`;
  return [minItems && `at least ${minItems}`, maxItems && `at most ${maxItems}`].filter(Boolean).join(", ");
}

// What a value may be, in a few words.
export function kindOf(api, given) {
  const schema = resolve(api, given);
  if (schema.anyOf) return schema.anyOf.map((one) => kindOf(api, one)).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  if ("const" in schema) return JSON.stringify(schema.const);
  const details = [range(schema), count(schema)].filter(Boolean).join("; ");
  const named = schema.type === "array" ? `list of ${kindOf(api, schema.items)}` : (schema.type ?? "anything");
  return details ? `${named} ${details}` : named;
}

// The object in it that has fields of its own, if there is one.
function objectIn(api, given) {
  const schema = resolve(api, given);
  if (schema.properties) return schema;
  const inner = schema.type === "array" ? [schema.items] : (schema.anyOf ?? []);
  return inner.map((one) => objectIn(api, one)).find(Boolean);
}

export function schemaFields(api, given) {
  const { properties = {}, required = [] } = objectIn(api, given) ?? {};
  const rows = Object.entries(properties).map(([name, schema]) => {
    const inner = objectIn(api, schema);
    const mandatory = required.includes(name);
    const fallback = schema.default !== undefined && schema.default !== null;
    return element(
      "div",
      {},
      element("dt", {}, element("code", {}, name), mandatory && " ", mandatory && element("span", { className: "required" }, "required")),
      element(
        "dd",
        {},
        element("span", { className: "kind" }, kindOf(api, schema)),
        fallback && element("span", { className: "kind" }, ", default ", element("code", {}, JSON.stringify(schema.default))),
        schema.description && element("br", {}),
        ...text(schema.description),
      ),
      inner && schemaFields(api, inner),
    );
  });
  return element("dl", { className: "fields" }, ...rows);
}
