// Watches a process from outside, once a second: memory, sockets, and its heap from what process-samples.ts writes into its log.
// Linux alone tells.
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import type { Child } from "../dev/child.ts";
import { at } from "./quantiles.ts";

/** What a process has at one moment; memory in MiB. */
export interface ProcessSample {
  readonly residentMb: number;
  readonly heapMb: number;
  readonly sockets: number;
}

const megabyte = 2 ** 20;
const everyMs = 1_000;

/** Looks once. */
export function sampleOf({ process: { pid }, logFile }: Child): ProcessSample {
  const residentKb = Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]);
  const heapBytes = Number(
    readFileSync(logFile, "utf8")
      .match(/"heapUsed":\d+/g)
      ?.at(-1)
      ?.split(":")[1] ?? 0,
  );
  return { residentMb: residentKb / 1024, heapMb: heapBytes / megabyte, sockets: socketsOf(pid) };
}

/** Looks every second until it is told to stop. */
export function watchProcess(child: Child) {
  const samples: ProcessSample[] = [];
  const timer = setInterval(() => samples.push(sampleOf(child)), everyMs);
  return {
    samples,
    stop: () => clearInterval(timer),
  };
}

/** The median of one fifth of the samples; the first fifth is number 0. */
export function medianOfFifth(values: readonly number[], fifth: number): number {
  const place = (share: number) => Math.floor((values.length * share) / 5);
  return at(values.slice(place(fifth), place(fifth + 1)), 0.5);
}

function socketsOf(pid: number | undefined): number {
  const directory = `/proc/${pid}/fd`;
  return readdirSync(directory).filter((fd) => {
    try {
      return readlinkSync(`${directory}/${fd}`).startsWith("socket:");
    } catch {
      // Closed since the folder was read.
      return false;
    }
  }).length;
}
