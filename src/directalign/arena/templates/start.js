// The form that makes an annotator of a name.
const form = document.getElementById("join");

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
      body: JSON.stringify({ name: form.elements.name.value, invitation: form.dataset.invitation }),
      signal: AbortSignal.timeout(15000),
    });
    const answer = await response.json();
    if (response.ok) return location.assign("/");
    problem.textContent = `${answer.error[0].toUpperCase()}${answer.error.slice(1)}.`;
  } catch {
    problem.textContent = "The server does not answer. Try again in a moment.";
  }
  button.disabled = false;
  form.elements.name.focus();
});
