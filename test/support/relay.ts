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
  /** Breaks the connection off in the place of the first answer from now on that is meant. Resolves when that has happened. */
  loseAnswer(isMeant: (answer: string) => boolean): Promise<void>;
  /** Connections accepted so far. */
  readonly accepted: () => number;
  stop(): Promise<void>;
}

/** Starts a relay to a port of this machine, or to the path of a socket. */
export async function startRelay(to: number | string): Promise<Relay> {
  const pairs = new Set<{ readonly client: Socket; readonly target: Socket }>();
  let accepted = 0;
  let held: "nothing" | "answers" | "all" = "nothing";
  let losing: { isMeant(answer: string): boolean; lost(): void } | undefined;

  function apply({ client, target }: { readonly client: Socket; readonly target: Socket }): void {
    if (held === "all") client.pause();
    else client.resume();
    if (held === "nothing") target.resume();
    else target.pause();
  }

  const server = createServer((client) => {
    accepted += 1;
    const target = typeof to === "number" ? connect(to, "127.0.0.1") : connect(to);
    const pair = { client, target };
    pairs.add(pair);
    for (const [from, to] of [
      [client, target],
      [target, client],
    ] as const) {
      from.on("data", (chunk) => {
        if (from === client || !losing?.isMeant(String(chunk))) return to.write(chunk);
        losing.lost();
        losing = undefined;
        client.destroy();
        target.destroy();
      });
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
    loseAnswer: (isMeant) =>
      new Promise((lost) => {
        losing = { isMeant, lost };
      }),
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
