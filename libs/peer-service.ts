// Which service is at the other end of a call: the one that its connection's certificate names. Reading a certificate costs
// more than all else that the adapter does for a call, and it is the same for as long as the connection lives, so it is read
// once per connection. grpc-js has no name for a connection; its HTTP/2 session, which a call's stream knows, is one. Should a
// later grpc-js hide it, the certificate is read for every call again: slower, not wrong.
import type { PeerCertificate } from "node:tls";
import { serviceOfCertificate } from "./rpc.ts";

/** A call, as far as its connection goes. */
export interface ConnectedCall {
  getAuthContext(): { readonly sslPeerCertificate?: Pick<PeerCertificate, "subjectaltname"> };
}

/** Names the peer's service: undefined without a certificate, `unknown` when it names none of ours. */
export type PeerService = (call: ConnectedCall) => string | undefined;

/** Makes the look-up for a server. */
export function peerServices(trustDomain: string): PeerService {
  const known = new WeakMap<object, string | undefined>();

  function read(call: ConnectedCall): string | undefined {
    const certificate = call.getAuthContext().sslPeerCertificate;
    return certificate && (serviceOfCertificate(certificate.subjectaltname, trustDomain) ?? "unknown");
  }

  return (call) => {
    const session = sessionOf(call);
    if (session === undefined) return read(call);
    if (!known.has(session)) known.set(session, read(call));
    return known.get(session);
  };
}

function sessionOf(call: object): object | undefined {
  const { call: inner } = call as { readonly call?: { readonly stream?: { readonly session?: unknown } } };
  const session = inner?.stream?.session;
  return typeof session === "object" && session !== null ? session : undefined;
}
