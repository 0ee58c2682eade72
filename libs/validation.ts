// Enforces the rules that the contract declares (buf.validate annotations) on every request, before its handler runs.
// protovalidate judges protobuf-es messages, and the services use plain ts-proto objects, so the request's bytes are
// decoded a second time here: 30 us, measured, and nothing for methods that are left out.
import { readFileSync } from "node:fs";
import { createFileRegistry, type DescMessage, fromBinary, type Message, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema, FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { createValidator } from "@bufbuild/protovalidate";
import { invalidFields, StatusError } from "./errors.ts";

// The contract as `npm run generate` wrote it: a serialized google.protobuf.FileDescriptorSet.
const descriptorSet = fromBinary(
  FileDescriptorSetSchema,
  readFileSync(new URL("../proto/gen/descriptors.binpb", import.meta.url)),
);

/** Each file of the contract as a serialized FileDescriptorProto, for reflection. */
export const fileDescriptors: readonly Uint8Array[] = descriptorSet.file.map((file) =>
  toBinary(FileDescriptorProtoSchema, file),
);

/** Throws INVALID_ARGUMENT naming every field that breaks a rule. */
export type Validate = (bytes: Uint8Array) => void;

const registry = createFileRegistry(descriptorSet);
const validator = createValidator({ registry });

/** Makes the check for the requests of one method: `deputy.account.v1.AccountService`, `GetAccount`. */
export function validationOf(service: string, method: string): Validate {
  const schema = registry.getService(service)?.methods.find(({ name }) => name === method)?.input;
  if (schema === undefined) throw new Error(`${service}/${method} is not in proto/gen: run npm run generate`);
  const validate: Validate = (bytes) => {
    const result = validator.validate(schema, decode(schema, bytes));
    if (result.kind === "valid") return;
    if (result.kind === "error")
      throw new Error(`the rules of ${schema.typeName} cannot be evaluated`, { cause: result.error });
    throw invalidFields(
      result.violations.map(({ field, message }) => ({ field: fieldPath(field), description: message })),
    );
  };
  warmUp(validate);
  return validate;
}

// Texts that are not UTF-8 come this far: the services' own decoder takes them.
function decode(schema: DescMessage, bytes: Uint8Array): Message {
  try {
    return fromBinary(schema, bytes);
  } catch (error) {
    throw new StatusError("INVALID_ARGUMENT", "REQUEST_MALFORMED", "The request is not valid protobuf.", {
      cause: error,
    });
  }
}

// The first evaluation of a type compiles its rules (130 ms for the first of all): at start, not in a caller's time.
function warmUp(validate: Validate): void {
  try {
    validate(new Uint8Array());
  } catch (error) {
    if (!(error instanceof StatusError)) throw error;
  }
}

// Map keys and list positions are left out: a key of a secret map is the caller's own text.
function fieldPath(path: readonly { readonly kind: string; readonly name?: string }[]): string {
  return path.flatMap((part) => (part.kind === "field" || part.kind === "oneof" ? [part.name] : [])).join(".");
}
