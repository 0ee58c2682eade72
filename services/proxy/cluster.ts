// Several proxy processes behind one address on one machine: `node services/proxy/cluster.ts` in place of main.ts, with the same
// settings. This process serves nothing itself: it hands connections to the others in turn, starts one anew that has died, and
// stops them all. Each of them leases for itself, as if it ran on a machine of its own.
import cluster, { type Worker } from "node:cluster";
import { once } from "node:events";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { readConfig } from "#libs/config.ts";
import { createLogger } from "#libs/log.ts";
import { dieLoudly, stopInOrder } from "#libs/process.ts";
import { serviceSettings } from "#libs/service-settings.ts";

const config = readConfig({
  DEPUTY_LOG_LEVEL: serviceSettings.DEPUTY_LOG_LEVEL,
  DEPUTY_PROXY_PROCESSES: { kind: "integer", default: "0", help: "How many proxy processes; 0 for one per core." },
});

const log = createLogger("proxy-cluster", config.DEPUTY_LOG_LEVEL);
dieLoudly(log);
const listening = new Set<Worker>();
let isStopping = false;

cluster.setupPrimary({ exec: join(import.meta.dirname, "main.ts") });
cluster.on("listening", (worker) => listening.add(worker));
cluster.on("exit", (worker, exitCode, signal) => {
  if (isStopping) return;
  log.error({ worker: worker.process.pid, exitCode, signal }, "a proxy process has ended");
  // One that never came up has said why, and the next would say the same. The others end with this process.
  if (!listening.delete(worker)) process.exit(1);
  cluster.fork();
});
for (let left = config.DEPUTY_PROXY_PROCESSES || availableParallelism(); left > 0; left -= 1) cluster.fork();

stopInOrder(log, () => {
  isStopping = true;
  return Promise.all(
    Object.values(cluster.workers ?? {})
      .flatMap((worker) => worker ?? [])
      .map(stop),
  );
});

async function stop(worker: Worker): Promise<void> {
  worker.process.kill("SIGTERM");
  if (!worker.isDead()) await once(worker, "exit");
}
