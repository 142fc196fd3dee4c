/* Search without a server: a browser starts no worker from a page of the file system.

   There, `Worker` becomes a hidden frame that runs the worker's script. The script sees what it uses
   of a worker: `postMessage`, which reaches the page, `importScripts`, and "message" events. The
   name `IFrameWorker` tells the theme's search that it runs in a frame. */
if (location.protocol === "file:") {
  class FrameWorker extends EventTarget {
    constructor(address) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.title = "Search";
      this.frame.srcdoc = "<!doctype html>";
      this.ready = new Promise((resolve) => {
        this.frame.addEventListener("load", () => this.prepare(address).then(resolve), { once: true });
      });
      document.body.append(this.frame);
    }

    prepare(address) {
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      inside.importScripts = async (...addresses) => {
        for (const each of addresses) await this.run(each);
      };
      return this.run(address);
    }

    run(address) {
      return new Promise((resolve, reject) => {
        const script = this.frame.contentDocument.createElement("script");
        script.src = address;
        script.onload = resolve;
        script.onerror = () => reject(new Error(`${address} cannot be read`));
        this.frame.contentDocument.body.append(script);
      });
    }

    postMessage(data) {
      this.ready.then(() => {
        this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
      });
    }

    terminate() {
      this.frame.remove();
    }
  }
  window.IFrameWorker = FrameWorker;
  window.Worker = FrameWorker;
}
