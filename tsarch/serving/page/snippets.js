// The same request from a shell and from Python.

const LONG = 100000; // characters that a shell still takes as an argument

function curlLine(body, withToken) {
  const json = JSON.stringify(body);
  const token = withToken ? ' -H "Authorization: Bearer $TSARCH_SERVE_TOKEN"' : "";
  const start = `curl ${shellQuoted(addressOf("predict"))} -H 'Content-Type: application/json'${token}`;
  // What comes from the standard input has no limit.
  if (json.length > LONG) return `${start} --data-binary @- <<'JSON'\n${json}\nJSON`;
  return `${start} --data-binary ${shellQuoted(json)}`;
}

function shellQuoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function pythonLine(body, withToken) {
  const token = withToken
    ? `, headers={"Authorization": "Bearer " + __import__("os").environ["TSARCH_SERVE_TOKEN"]}`
    : "";
  const address = JSON.stringify(addressOf("predict"));
  return `import requests; print(requests.post(${address}, json=${pythonic(body)}${token}).json())`;
}

function pythonic(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(pythonic).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value); // its escapes are Python's too
  const parts = Object.entries(value).map(([name, own]) => `${JSON.stringify(name)}: ${pythonic(own)}`);
  return `{${parts.join(", ")}}`;
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Pages that didn't come by https have no clipboard.
  const area = el("textarea", { class: "offscreen", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("The browser didn't allow it.");
}
