// How a StatusError travels: the standard google.rpc.Status in the trailer `grpc-status-details-bin`, which every gRPC
// language can read, holding ErrorInfo (reason), BadRequest (fields) and RequestInfo (request id).
import { BadRequest, ErrorInfo, RequestInfo } from "#proto/google/rpc/error_details.ts";
import { Status } from "#proto/google/rpc/status.ts";
import { type FieldViolation, type StatusCode, StatusError, statusCodes } from "./errors.ts";

/** Name of the trailer. */
export const detailsTrailer = "grpc-status-details-bin";

const domain = "deputy";
const typePrefix = "type.googleapis.com/google.rpc.";
const codeNames = new Map(Object.entries(statusCodes).map(([name, number]) => [number as number, name as StatusCode]));

/** Encodes an error for the trailer. */
export function encodeDetails(error: StatusError, requestId: string): Buffer {
  const details = [
    {
      typeUrl: `${typePrefix}ErrorInfo`,
      value: ErrorInfo.encode({ reason: error.reason, domain, metadata: { ...error.metadata } }).finish(),
    },
    { typeUrl: `${typePrefix}RequestInfo`, value: RequestInfo.encode({ requestId, servingData: "" }).finish() },
  ];
  if (error.violations.length > 0) {
    const fieldViolations = error.violations.map((violation) => ({
      ...violation,
      reason: "",
      localizedMessage: undefined,
    }));
    details.push({ typeUrl: `${typePrefix}BadRequest`, value: BadRequest.encode({ fieldViolations }).finish() });
  }
  const status = { code: statusCodes[error.code], message: error.message, details };
  return Buffer.from(
    Status.encode({
      ...status,
      details: details.map(({ typeUrl, value }) => ({ typeUrl, value: Buffer.from(value) })),
    }).finish(),
  );
}

/** Rebuilds the error that a call ended with. Without details, as from a proxy in between, the code's name is the reason. */
export function decodeStatus(code: number, message: string, details: Buffer | undefined): StatusError {
  const name = codeNames.get(code) ?? "UNKNOWN";
  let reason: string = name;
  let metadata: Record<string, string> = {};
  let violations: readonly FieldViolation[] = [];
  for (const { typeUrl, value } of details === undefined ? [] : Status.decode(details).details) {
    if (typeUrl === `${typePrefix}ErrorInfo`) ({ reason, metadata } = ErrorInfo.decode(value));
    if (typeUrl === `${typePrefix}BadRequest`) {
      // The standard message has more members than we fill in; what is not ours stays here.
      const { fieldViolations } = BadRequest.decode(value);
      violations = fieldViolations.map(({ field, description }) => ({ field, description }));
    }
  }
  return new StatusError(name, reason, message, { metadata, violations });
}
