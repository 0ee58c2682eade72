// Preloaded into every child of the local stack: ends the process when its standard input ends, which the kernel sees to
// when the parent is gone, kill -9 included. First in order, then, for one that hangs, at once.
const graceMs = 3_000;

process.stdin.on("end", () => {
  process.kill(process.pid, "SIGTERM");
  setTimeout(() => process.kill(process.pid, "SIGKILL"), graceMs);
});
process.stdin.resume();
// Waiting for its parent's end shall not keep a process alive that is otherwise done.
(process.stdin as Partial<{ unref(): void }>).unref?.();
