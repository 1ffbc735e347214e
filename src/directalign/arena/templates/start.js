// The form to join. The request id is kept until a response arrives, also over a reload: if the response is lost, the same
// request can be sent again and gets the same name.
import { uuid } from "/static/outbox.js";

const form = document.getElementById("join");

const KEY = "arena:joining";
const drawn = uuid();
const isOther = form !== null && "other" in form.dataset;

// A link in a mail opens without the session (SameSite=Strict), a request of this page has it: whoever takes part already
// goes on under the own name.
if (form && !isOther) {
  fetch("/api/session").then((response) => response.json()).then(({ name }) => { if (name) location.replace(location.pathname); })
    .catch(() => {});
}

function request() {
  try {
    if (!sessionStorage.getItem(KEY)) sessionStorage.setItem(KEY, drawn);
    return sessionStorage.getItem(KEY);
  } catch { return drawn; }
}

function joined() {
  try { sessionStorage.removeItem(KEY); } catch { /* not stored */ }
  location.assign("/");
}

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const problem = document.getElementById("problem");
  const button = form.querySelector("button");
  button.disabled = true;
  problem.textContent = "";
  try {
    const response = await fetch("/api/join", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        request: request(), name: form.elements.name.value, invitation: form.dataset.invitation, is_other_person: isOther,
      }),
      signal: AbortSignal.timeout(15000),
    });
    const answer = await response.json();
    if (response.ok) return joined();
    problem.textContent = `${answer.error[0].toUpperCase()}${answer.error.slice(1)}.`;
  } catch {
    problem.textContent = "The server does not respond. Try again in a moment.";
  }
  button.disabled = false;
  form.elements.name.focus();
});
