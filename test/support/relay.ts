// A TCP relay on loopback that can fall silent: connections stay open and nothing more comes through, as when a network drops
// every packet. What was held comes through when it goes on.
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";

/** A running relay. */
export interface Relay {
  readonly port: number;
  /** Holds what the target answers, or both ways. */
  hold(which: "answers" | "all"): void;
  release(): void;
  /** Connections accepted so far. */
  readonly accepted: () => number;
  stop(): Promise<void>;
}

/** Starts a relay to a port of this machine. */
export async function startRelay(targetPort: number): Promise<Relay> {
  const pairs = new Set<{ readonly client: Socket; readonly target: Socket }>();
  let accepted = 0;
  let held: "nothing" | "answers" | "all" = "nothing";

  function apply({ client, target }: { readonly client: Socket; readonly target: Socket }): void {
    if (held === "all") client.pause();
    else client.resume();
    if (held === "nothing") target.resume();
    else target.pause();
  }

  const server = createServer((client) => {
    accepted += 1;
    const target = connect(targetPort, "127.0.0.1");
    const pair = { client, target };
    pairs.add(pair);
    for (const [from, to] of [
      [client, target],
      [target, client],
    ] as const) {
      from.on("data", (chunk) => to.write(chunk));
      from.on("end", () => to.end());
      from.on("error", () => to.destroy());
      from.on("close", () => {
        to.destroy();
        pairs.delete(pair);
      });
    }
    apply(pair);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const change = (next: typeof held) => {
    held = next;
    for (const pair of pairs) apply(pair);
  };
  return {
    port: (server.address() as AddressInfo).port,
    hold: change,
    release: () => change("nothing"),
    accepted: () => accepted,
    async stop() {
      for (const { client, target } of pairs) {
        client.destroy();
        target.destroy();
      }
      server.close();
      await once(server, "close");
    },
  };
}
