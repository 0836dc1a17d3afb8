// Search without a server: a browser starts no worker for a page that was opened as a file, so an
// invisible frame does its work. Elsewhere this does nothing.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = `<script>
        self.postMessage = (data) => parent.dispatchEvent(new CustomEvent("iframe-worker", { detail: data }));
        self.importScripts = () => {};
      <\/script><script src="${url}"><\/script>`;
      this.frame.onload = () => {
        this.ready = true;
        this.waiting.splice(0).forEach((data) => this.postMessage(data));
      };
      addEventListener("iframe-worker", ({ detail }) => {
        const event = new MessageEvent("message", { data: detail });
        this.dispatchEvent(event);
        this.onmessage?.(event);
      });
      document.addEventListener("DOMContentLoaded", () => document.body.append(this.frame));
      if (document.body) document.body.append(this.frame);
    }
    postMessage(data) {
      if (!this.ready) return void this.waiting.push(data);
      const event = new MessageEvent("message", { data });
      this.frame.contentWindow.dispatchEvent(event);
    }
    terminate() { this.frame.remove(); }
  };
}
