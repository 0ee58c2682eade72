// Whether the services behind the gateway can be reached, asked over the standard gRPC health protocol (grpc.health.v1),
// which every service speaks. Its two messages have one field each, so their codecs are written out here.
import { BinaryReader, BinaryWriter } from "@bufbuild/protobuf/wire";
import type { FastifyInstance } from "fastify";
import type { Client } from "#libs/rpc.ts";
import { ownCall } from "./requests.ts";

/** `grpc.health.v1.Health` as far as it is used: a check of the whole server. */
export const HealthDefinition = {
  fullName: "grpc.health.v1.Health",
  methods: {
    check: {
      name: "Check",
      requestType: {
        encode: (_message: object) => new BinaryWriter(),
        decode: (_bytes: Uint8Array) => ({}),
        fromPartial: (_partial: object) => ({}),
      },
      requestStream: false,
      responseType: {
        encode: ({ status }: { status: number }) => new BinaryWriter().uint32(8).int32(status),
        decode: decodeStatus,
        fromPartial: ({ status }: { status: number }) => ({ status }),
      },
      responseStream: false,
    },
  },
} as const;

/** Asks one service. */
export type HealthClient = Client<typeof HealthDefinition>;

const serving = 1;
const timeoutMs = 2000;

function decodeStatus(bytes: Uint8Array): { status: number } {
  const reader = new BinaryReader(bytes);
  let status = 0;
  while (reader.pos < reader.len) {
    const [field, type] = reader.tag();
    if (field === 1) status = reader.int32();
    else reader.skip(type);
  }
  return { status };
}

/** Adds `GET /healthz`: 200 when every service serves, else 503, with a word for each. */
export function addHealthRoute(app: FastifyInstance, services: Readonly<Record<string, HealthClient>>): void {
  app.get("/healthz", async (request, reply) => {
    const states = await Promise.all(
      Object.entries(services).map(async ([name, client]) => {
        const state = await client.check({}, ownCall(request, timeoutMs)).then(
          ({ status }) => (status === serving ? "serving" : "not serving"),
          () => "unreachable",
        );
        return [name, state] as const;
      }),
    );
    const healthy = states.every(([, state]) => state === "serving");
    return reply
      .code(healthy ? 200 : 503)
      .send({ status: healthy ? "serving" : "not serving", services: Object.fromEntries(states) });
  });
}
