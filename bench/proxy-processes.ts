// The processes of bench/proxy.ts: each is told what to do by its arguments and speaks over Node's own channel. Servers run on
// one core and what loads them on the other, where the system can pin them, so that they do not take each other's time.
import { type ChildProcess, execFile, fork, spawn } from "node:child_process";
import { existsSync, openSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { serviceFlags } from "../dev/child.ts";
import { freePort } from "../dev/ports.ts";

/** A process that is ready. */
export interface BenchProcess {
  readonly pid: number;
  readonly port: number;
  readonly tlsPort: number;
  /** Sends it a message and gives its answer. */
  ask<Answer>(message: object): Promise<Answer>;
  /** Processor time used so far, in microseconds. */
  cpu(): Promise<number>;
  stop(): void;
}

const cores = { server: "0", load: "1", anywhere: `0-${availableParallelism() - 1}` };

/** Where a process may run. */
type Role = keyof typeof cores;

const expressVersion = "5.3.0";
const axiosVersion = "1.21.1";

/** Starts a file of bench/ as a process, with the flags of the services. */
export async function startBenchProcess(
  file: string,
  role: Role,
  parameters: readonly string[],
  logFile?: string,
): Promise<BenchProcess> {
  const child = fork(join(import.meta.dirname, file), parameters, {
    execArgv: serviceFlags,
    stdio: ["ignore", logFile === undefined ? "ignore" : openSync(logFile, "w"), "inherit", "ipc"],
  });
  await pin(child, role);
  const { promise: ended, reject: end } = Promise.withResolvers<never>();
  child.once("exit", () => end(new Error(`${file} ${parameters[0] ?? ""} has ended`)));
  ended.catch(() => undefined);
  const answers = () => {
    const { promise, resolve } = Promise.withResolvers<never>();
    child.once("message", resolve);
    return Promise.race([promise, ended]);
  };
  const ready: { readonly port: number; readonly tlsPort: number } = await answers();
  const ask = (message: object) => {
    const answer = answers();
    child.send(message);
    return answer;
  };
  return {
    pid: child.pid ?? 0,
    port: ready.port,
    tlsPort: ready.tlsPort,
    ask,
    async cpu() {
      const { user, system }: NodeJS.CpuUsage = await ask({});
      return user + system;
    },
    stop: () => void (child.connected && child.disconnect()),
  };
}

/** Keeps this process, and those that it starts, to a core: where it is caller or upstream itself. */
export async function pinThisProcess(role: Role): Promise<void> {
  await pin(process, role);
}

async function pin({ pid }: Pick<ChildProcess, "pid">, role: Role): Promise<void> {
  if (!existsSync("/usr/bin/taskset") || availableParallelism() < 2) return;
  await promisify(execFile)("taskset", ["-a", "-p", "-c", cores[role], String(pid)]);
}

/** nginx with one header put in, or why there is none. */
export async function startNginx(directory: string, upstreamPort: number): Promise<BenchProcess | string> {
  if (!existsSync("/usr/sbin/nginx")) return "nginx is not installed (Debian: nginx-light)";
  const port = await freePort();
  const root = join(directory, "nginx");
  await mkdir(root);
  await writeFile(
    join(root, "nginx.conf"),
    `daemon off; master_process off; pid ${root}/pid; error_log ${root}/error.log;
events { worker_connections 1024; }
http {
  access_log off; client_body_temp_path ${root}/body; proxy_temp_path ${root}/proxy; fastcgi_temp_path ${root}/f;
  uwsgi_temp_path ${root}/u; scgi_temp_path ${root}/s;
  keepalive_requests 1000000000;
  upstream api { server 127.0.0.1:${upstreamPort}; keepalive 256; keepalive_requests 1000000000; }
  server {
    listen 127.0.0.1:${port};
    location / {
      proxy_pass https://api; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_ssl_trusted_certificate ${directory}/ca.pem; proxy_ssl_verify on; proxy_ssl_name localhost;
      proxy_set_header Authorization "Bearer access-token";
    }
  }
}
`,
  );
  const child = spawn("nginx", ["-p", root, "-c", join(root, "nginx.conf")], { stdio: "ignore" });
  await sleep(300);
  if (child.exitCode !== null) return "nginx did not start";
  await pin(child, "server");
  return {
    pid: child.pid ?? 0,
    port,
    tlsPort: 0,
    ask: () => Promise.reject(new Error("nginx is not asked")),
    cpu: async () => 0,
    stop: () => void child.kill(),
  };
}

/** A proxy of express and axios, or why there is none. */
export async function startExpressAxios(directory: string, upstreamPort: number): Promise<BenchProcess | string> {
  const packages = join(directory, "packages");
  await mkdir(packages);
  await writeFile(join(packages, "package.json"), "{}");
  const wanted = [`express@${expressVersion}`, `axios@${axiosVersion}`];
  try {
    const flags = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-save"];
    await promisify(execFile)("npm", ["install", ...flags, ...wanted], { cwd: packages, timeout: 60_000 });
  } catch {
    return `${wanted.join(" and ")} could not be installed`;
  }
  return startBenchProcess("express-axios.ts", "server", [packages, directory, String(upstreamPort)]);
}
