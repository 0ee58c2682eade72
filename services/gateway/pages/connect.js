// Lets the connect page speak with the product's page that frames it, in the messages that existing clients know: success or
// error, then close. They go to the origins that the connect token allows, and to no other. A provider's page stands in no
// frame, so it opens in a window of its own, which tells the frame how it ended; some providers cut the tie between the two,
// so the frame asks for the end as well.
(() => {
  const { role, origins, provider, outcome, next, connection } = document.currentScript.dataset;
  const isFramed = window.parent !== window;
  const pollMs = 2000;
  const closeMs = 1500;

  const tell = (message) => {
    for (const origin of JSON.parse(origins)) window.parent.postMessage(message, origin);
  };

  // Success is told once; a failure may be followed by another try.
  let succeeded = false;
  const end = (message) => {
    if (succeeded) return;
    succeeded = message.type === "success";
    tell(message);
    if (succeeded) setTimeout(() => tell({ type: "close" }), closeMs);
  };

  const watch = async (connectionId, token) => {
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, pollMs));
      if (succeeded) return;
      const headers = { authorization: `Bearer ${token}` };
      const answer = await fetch(`/v1/connect/connections/${connectionId}`, { headers }).catch(() => undefined);
      if (answer === undefined || answer.status >= 500) continue;
      const { state, account_id, error } = answer.ok ? await answer.json() : { state: "failed" };
      // The window itself may be about to say so, with more.
      await new Promise((resolve) => setTimeout(resolve, pollMs));
      if (state === "succeeded") return end({ type: "success", authProvisionId: account_id });
      if (state === "failed") return show(error || "Connection failed. Please retry or contact support.");
    }
  };

  const show = (error) => {
    const place = document.getElementById("told");
    if (place !== null) {
      place.textContent = error;
      place.hidden = false;
    }
    end({ type: "error", error });
  };

  if (role === "form" && isFramed) {
    const form = document.querySelector("form");
    const close = document.getElementById("close");
    if (close !== null) {
      close.hidden = false;
      close.addEventListener("click", () => tell({ type: "close" }));
    }
    form.elements.framed.value = "true";
    let popup = null;
    if (provider === "true") {
      form.addEventListener("submit", (event) => {
        popup = window.open("", "deputy-connect", "popup,width=520,height=720");
        if (popup !== null) {
          form.target = "deputy-connect";
          return;
        }
        event.preventDefault();
        show("The browser has blocked the window of the provider: allow it and try again.");
      });
    }
    window.addEventListener("message", ({ origin, source, data }) => {
      if (popup === null || source !== popup || origin !== window.location.origin) return;
      if (data.deputy === "started") void watch(data.connectionId, form.elements.token.value);
      if (data.deputy === "ended" && data.outcome.type === "success") end(data.outcome);
      if (data.deputy === "ended" && data.outcome.type === "error") show(data.outcome.error);
    });
  }

  if (role === "started") {
    window.opener?.postMessage({ deputy: "started", connectionId: connection }, window.location.origin);
    window.location.replace(next);
  }

  if (role === "result") {
    if (isFramed) {
      end(JSON.parse(outcome));
    } else if (window.opener !== null) {
      window.opener.postMessage({ deputy: "ended", outcome: JSON.parse(outcome) }, window.location.origin);
      window.close();
    } else if (next) {
      window.location.replace(next);
    }
  }
})();
