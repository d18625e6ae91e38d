// Counts for each client: the workers of a cluster serve, their primary keeps the counts.
'use strict';
const cluster = require('cluster');
const http = require('http');
const { Worker } = require('worker_threads');

const thread = `
  const { parentPort, workerData } = require('worker_threads');
  const shared = new Int32Array(workerData);
  parentPort.on('message', (n) => { Atomics.add(shared, 0, 1); parentPort.postMessage(n * n); });
`;

function primary() {
  const counts = new Map();
  for (let i = 0; i < 2; i++) cluster.fork();
  cluster.on('message', (worker, { id, client }) => {
    counts.set(client, (counts.get(client) || 0) + 1);
    worker.send({ id, body: `${client} ${counts.get(client)}` });
  });
  cluster.on('exit', (worker, code, signal) => {
    console.error(`a worker ended: ${code} ${signal}`);
    process.exit(1);
  });
}

function worker() {
  const waiting = new Map();
  const memory = new SharedArrayBuffer(4);
  const shared = new Int32Array(memory);
  const background = new Worker(thread, { eval: true, workerData: memory });
  const jobs = [];
  let next = 0, ticks = 0, asked = 0;
  setInterval(() => { ticks++; }, 10);
  background.on('message', (n) => jobs.shift()(n));
  background.on('error', (error) => { console.error(error); process.exit(1); });
  process.on('message', ({ id, body }) => { waiting.get(id)(body); waiting.delete(id); });

  const add = (client) => new Promise((resolve) => {
    waiting.set(++next, resolve);
    process.send({ id: next, client });
  });
  const square = (n) => new Promise((resolve) => { jobs.push(resolve); background.postMessage(n); });
  async function check() {
    const number = ++asked, before = ticks;
    if (await square(number) !== number * number) return 'the thread\'s answer';
    if (Atomics.load(shared, 0) < number) return 'memory that is not shared';
    for (let i = 0; i < 200 && ticks === before; i++) await new Promise((resolve) => setTimeout(resolve, 50));
    return ticks > before ? 'ok' : 'a timer that stands still';
  }
  const server = http.createServer(async (request, response) => {
    const body = request.url === '/check' ? await check() : await add(request.url.split('/')[2]);
    response.setHeader('Content-Length', body.length);
    response.end(body);
  });
  server.keepAliveTimeout = 600000;
  server.listen(8080, '0.0.0.0');
}

if (cluster.isPrimary) primary(); else worker();
