// Preloaded into a measured process: a line on its memory (bytes) and CPU time (microseconds) in its log twice a second.
const everyMs = 500;

setInterval(() => {
  const { rss, heapUsed } = process.memoryUsage();
  const { user, system } = process.cpuUsage();
  console.log(JSON.stringify({ rss, heapUsed, cpuUs: user + system }));
}, everyMs).unref();
