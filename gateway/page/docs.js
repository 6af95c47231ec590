// Shows this server's OpenAPI document: as much of the format as that document uses.

function element(kind, content = [], className = "") {
  const made = document.createElement(kind);
  made.className = className;
  made.append(...[content].flat());
  return made;
}
const table = (head, rows) => element("table", [
  element("thead", element("tr", head.map((text) => element("th", text)))),
  element("tbody", rows.map((row) => element("tr", row.map((cell) => element("td", cell))))),
]);
const text = (value) => element("pre", typeof value === "string" ? value : lines(value));

/** JSON with what fits on one line on one line. */
function lines(value, before = "") {
  const flat = JSON.stringify(value);
  if (typeof value !== "object" || flat.length < 70) return flat.replaceAll(",", ", ").replaceAll(":", ": ");
  const inner = `${before}  `, parts = Array.isArray(value)
    ? value.map((one) => inner + lines(one, inner))
    : Object.entries(value).map(([name, one]) => `${inner}${JSON.stringify(name)}: ${lines(one, inner)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return `${open}\n${parts.join(",\n")}\n${before}${close}`;
}

const known = await (await fetch("/openapi.json")).json();
const resolved = (schema) => (schema.$ref ? schema.$ref.split("/").slice(1).reduce((place, part) => place[part], known) : schema);

function allowed(schema) {
  if (schema.enum) return schema.enum.join(", ");
  if ("minimum" in schema && "maximum" in schema) return `${schema.type}, ${schema.minimum} to ${schema.maximum}`;
  if (schema.type === "array" && schema.items?.format === "binary") return `files, ${schema.minItems} to ${schema.maxItems}`;
  return schema.format || schema.type || "";
}

/** Rows of a table for a schema's properties, those of objects inside below them. */
function rows(schema, before = "") {
  return Object.entries(resolved(schema).properties || {}).flatMap(([name, given]) => {
    const part = resolved(given), inner = part.type === "array" ? resolved(part.items) : part;
    const kinds = part.anyOf?.map((one) => `${one.title}: ${one.description || `${Object.keys(one.properties).join(", ")}`}`);
    const says = [part.description || "", ...(kinds || [])].filter(Boolean).join(" · ");
    const path = `${before}${name}${part.type === "array" && inner.properties ? "[]" : ""}`;
    return [[element("code", path), part.type || "", says], ...(inner.properties ? rows(inner, `${path}.`) : [])];
  });
}

function operation(path, method, one) {
  const parts = [element("h2", [element("span", method.toUpperCase(), "method"), element("code", path)]), element("p", one.summary)];
  if (one.description) parts.push(element("p", one.description));
  for (const { title, text: example } of one["x-examples"] || []) parts.push(element("h3", title), text(example.replaceAll("{server}", location.origin)));
  if (one.parameters) {
    parts.push(element("h3", "Options"), table(["name", "allowed", "default", ""], one.parameters.map(({ name, schema, description }) => [
      element("code", name), allowed(schema), String(schema.default ?? ""), description,
    ])));
  }
  if (one.requestBody) {
    parts.push(element("h3", "Body"), table(["content type", ""], Object.entries(one.requestBody.content).map(([kind, { schema }]) => [
      element("code", kind), schema.properties ? `${Object.keys(schema.properties).join(", ")}` : "one encoded image",
    ])));
  }
  for (const [status, given] of Object.entries(one.responses)) {
    for (const [kind, { schema, example }] of Object.entries(given.content || {})) {
      if (status !== "200" || kind !== "application/json") continue;
      parts.push(element("h3", "Answer"), table(["name", "type", ""], rows(schema)));
      if (example) parts.push(text(example));
    }
  }
  parts.push(element("h3", "Statuses"), table(["", ""], Object.entries(one.responses).map(([status, given]) => {
    const example = given.content?.["application/problem+json"]?.example;
    return [element("code", status), example ? `${given.description} Such as: ${example.detail}` : given.description];
  })));
  return element("article", parts);
}

document.getElementById("doc").replaceChildren(
  element("p", known.info.description),
  ...Object.entries(known.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, one]) => operation(path, method, one))),
);
