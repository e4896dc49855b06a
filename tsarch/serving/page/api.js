// Requests to the API beside this page, and what its errors say.

class ApiError extends Error {
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // seconds
  }
}

const TOKEN = "tsarch-token";
const REQUEST_ERRORS = new Set([400, 401, 403, 404, 413, 422]); // it would fail in any mode
const NAMES = {
  401: "A token is needed",
  403: "Not allowed",
  404: "Not found",
  413: "Too large",
  422: "The input can't be read",
  429: "The server is busy",
  500: "The server failed",
  502: "The server can't be reached",
  503: "The server isn't ready",
  504: "It took too long",
};

async function call(path, body = null, signal = undefined) {
  const headers = { Accept: "application/json" };
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  const options = { headers, signal, credentials: "same-origin" };
  if (body !== null) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  const response = await fetch(addressOf(path), options).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server can't be reached. Is it running?");
  });
  const text = await response.text();
  if (!response.ok) throw errorOf(response, text);
  return parsed(text);
}

function addressOf(path) {
  return new URL(path, document.baseURI).href;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new ApiError("The server's answer isn't JSON.");
  }
}

function errorOf(response, text) {
  const after = Number(response.headers.get("Retry-After"));
  const name = NAMES[response.status] || `Error ${response.status}`;
  const retryAfter = response.headers.has("Retry-After") && after >= 0 ? after : null;
  return new ApiError(`${name}: ${detailOf(text) || response.statusText}`, response.status, retryAfter);
}

function detailOf(text) {
  let detail = text;
  try {
    detail = JSON.parse(text).detail ?? text;
  } catch {
    return text.slice(0, 500);
  }
  if (!Array.isArray(detail)) return typeof detail === "string" ? detail : JSON.stringify(detail);
  return detail.map((own) => `${(own.loc || []).join(".")}: ${own.msg}`).join("; ");
}

/** Waits; `tell(seconds left)` each second. */
async function pause(seconds, signal, tell) {
  for (let left = Math.ceil(seconds); left > 0; left--) {
    tell(left);
    await new Promise((done, stop) => {
      const timer = setTimeout(done, 1000);
      signal.addEventListener("abort", () => {
        clearTimeout(timer);
        stop(new DOMException("", "AbortError"));
      }, { once: true });
    });
  }
}

const TRIES = 4;

/** A call that is made again when a busy server says when. */
async function patientCall(path, body, signal, tell) {
  for (let tries = 1; ; tries++) {
    try {
      return await call(path, body, signal);
    } catch (error) {
      if (![429, 503].includes(error.status) || error.retryAfter === null || tries === TRIES) throw error;
      await pause(Math.min(error.retryAfter, 60), signal, (left) => tell(error, left));
    }
  }
}
