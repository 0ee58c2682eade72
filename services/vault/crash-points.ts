// Where a test may have the process killed, as a power cut would: named places in the life of a refresh. Off unless a
// setting of development names one.

/** Before the intent; after it; with the answer in hand; with the answer on disk; after the commit. */
export const crashPoints = ["locked", "intended", "answered", "spooled", "recorded"] as const;

/** A place in a refresh. */
export type CrashPoint = (typeof crashPoints)[number];

/** Told of each place that a refresh passes. */
export type PassPoint = (point: CrashPoint) => void;

/** Kills this process at the named place; nowhere when the name is empty. Throws for other names, and outside development. */
export function crashAt(name: string, isDevelopment: boolean): PassPoint {
  if (name === "") return () => undefined;
  if (!isDevelopment) throw new Error("DEPUTY_TEST_CRASH_POINT is for development: leave it out.");
  if (!crashPoints.some((point) => point === name)) {
    throw new Error(`DEPUTY_TEST_CRASH_POINT is none of ${crashPoints.join(", ")}.`);
  }
  return (point) => {
    if (point === name) process.kill(process.pid, "SIGKILL");
  };
}
