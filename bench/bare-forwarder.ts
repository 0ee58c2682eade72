// The least that a forwarder written on this adapter could do: gRPC in, one header put in, undici's dispatch out. It checks
// nothing, limits nothing and keeps nothing: what the proxy costs beyond it is what the proxy does.
import { Agent } from "undici";
import type { ForwardRequest, ForwardResponse } from "#proto/deputy/proxy/v1/proxy_service.ts";

/** Makes the handler. */
export function bareForwarder(origin: string, ca: string): (request: ForwardRequest) => Promise<ForwardResponse> {
  const agent = new Agent({ connections: 256, pipelining: 1, connect: { ca } });
  return ({ method, url, headers, body }) => {
    const { promise, resolve, reject } = Promise.withResolvers<ForwardResponse>();
    const chunks: Buffer[] = [];
    let status = 0;
    let answered: ForwardResponse["headers"] = [];
    agent.dispatch(
      {
        origin,
        path: url,
        method: method as "GET",
        headers: [...headers.flatMap(({ name, value }) => [name, value]), "authorization", "Bearer access-token"],
        body: body.length > 0 ? body : null,
      },
      {
        onRequestStart: () => undefined,
        onResponseStart(_controller, code, found) {
          status = code;
          answered = Object.entries(found).map(([name, value]) => ({ name, value: String(value) }));
        },
        onResponseData: (_controller, chunk) => void chunks.push(chunk),
        onResponseEnd: () =>
          resolve({
            status,
            headers: answered,
            body: Buffer.concat(chunks),
            attempts: 1,
            refreshed: false,
            upstreamDurationMs: 0,
          }),
        onResponseError: (_controller, error) => reject(error),
      },
    );
    return promise;
  };
}
