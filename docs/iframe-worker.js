// Browsers start no worker from a folder. There the search's worker runs in a hidden frame instead, so that the site
// needs no server. The frame and the page talk as a worker and its page do, by messages.
if (location.protocol === "file:") window.Worker = class extends EventTarget {
  constructor(url) {
    super()
    this.waiting = []
    this.frame = document.createElement("iframe")
    this.frame.hidden = true
    this.frame.title = "search"
    document.body.append(this.frame)
    const inside = this.frame.contentWindow, script = inside.document.createElement("script")
    inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
    script.onload = () => { this.ready = true; this.waiting.forEach(data => this.postMessage(data)) }
    script.src = url
    inside.document.body.append(script)
  }
  postMessage(data) {
    if (!this.ready) this.waiting.push(data)
    else this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }))
  }
  terminate() { this.frame.remove() }
}
