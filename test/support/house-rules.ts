// The house rules, each a function over a table of files that gives what breaks it, in words. What may be imported where is
// data on top: a new package or a second door is one line here, and the reason belongs into the commit.
import { basename } from "node:path";
import type { Import, SourceFile, SourceFiles } from "./imports.ts";

/** Checks a table of files; each text names a file and what is wrong with it. */
export type Rule = (files: SourceFiles) => readonly string[];

// One door per outside package that a process runs on: files, and folders that end in a slash. A package without a row is
// free to use. dev/ and test/ are outside of this: the sandbox and the tests may speak to a package directly.
const doors: Readonly<Record<string, readonly string[]>> = {
  "@grpc/grpc-js": ["libs/rpc-client.ts", "libs/rpc-server.ts", "libs/write-ahead.ts"],
  "@grpc/reflection": ["libs/rpc-server.ts"],
  "grpc-health-check": ["libs/rpc-server.ts"],
  "@bufbuild/protovalidate": ["libs/validation.ts"],
  // The gateway writes down the standard health check, which is not in our contract.
  "@bufbuild/protobuf": ["libs/message-bytes.ts", "libs/validation.ts", "proto/gen/", "services/gateway/health.ts"],
  pg: ["libs/database.ts"],
  kysely: ["libs/database.ts", "libs/insert-rows.ts", "migrations/", "services/account/", "services/vault/"],
  "graphile-worker": ["migrations/", "services/account/", "services/vault/"],
  pino: ["libs/log.ts"],
  undici: ["libs/egress.ts", "libs/egress-exchange.ts", "libs/egress-connector.ts"],
  yaml: ["libs/app-definition.ts", "libs/catalog.ts", "services/vault/import-mapping.ts"],
  jose: ["libs/access-tokens.ts", "libs/signing-key.ts", "services/account/", "services/vault/"],
  oauth4webapi: ["services/vault/"],
  "@aws-sdk/client-kms": ["services/vault/kek-aws.ts"],
  "@google-cloud/kms": ["services/vault/kek-gcp.ts"],
  ioredis: ["services/proxy/limit-store.ts"],
  "rate-limiter-flexible": ["services/proxy/limit-store.ts"],
  fastify: ["services/gateway/"],
  eta: ["services/gateway/"],
  "node:http": [],
  "node:https": [],
  "node:http2": [],
  "node:child_process": [],
};

const cipherDoor = "services/vault/envelope.ts";
const environmentDoor = "libs/config.ts";
const ciphers = /^(create(Cipheriv|Decipheriv)|(public|private)(Encrypt|Decrypt)|subtle|webcrypto)$/;

// Of a service's files, those that speak the contract: they serve handlers, call clients, or turn rows into messages. So do
// files named after an RPC. The gateway has no ideas of its own: all of it turns HTTP into the contract and back.
const contractSpeakers =
  /^(?:start-(?:account|vault)|(?:.*-)?(?:main|service|handlers|handler-group|messages|clients?|callers|authenticate))\.ts$/;
// What RevokeAllAccounts, DeleteAccount and DeleteUser share.
const sharedByRpcs = new Set(["revoke-accounts.ts", "revocation.ts"]);
const hubNames = new Set(["index.ts", "types.ts", "utils.ts", "context.ts", "constants.ts", "helpers.ts", "common.ts"]);
const machinePaths = /\/(?:work|root|home|Users)\/[\w.]/;
const secretValue = /\b\w*(?:secret|password|token|key)\w*["']?\s*[:=]\s*["'][A-Za-z0-9+/_=-]{16,}["']/i;
const secretDefault = /kind: "secret"[^}]*default: "[^"]+"/;
const longestFile = 400;

const inside = (path: string, ...folders: string[]) => folders.some((folder) => path.startsWith(`${folder}/`));
const runs = (path: string) => inside(path, "services", "libs", "migrations", "proto/gen");
const handwritten = (path: string) => !inside(path, "proto/gen");
const serviceOf = (path: string) => /^services\/([^/]+)\//.exec(path)?.[1];
const sourceFolder = (path: string) => /^(?:services\/[^/]+|proto\/gen|[^/]+)/.exec(path)?.[0];

function imports(files: SourceFiles, fault: (path: string, imported: Import) => string | false | undefined): string[] {
  return each(files, (path, file) => file.imports.map((imported) => fault(path, imported)));
}

function each(files: SourceFiles, faults: (path: string, file: SourceFile) => readonly unknown[]): string[] {
  return [...files].flatMap(([path, file]) =>
    faults(path, file).flatMap((fault) => (typeof fault === "string" ? `${path}: ${fault}` : [])),
  );
}

/** Services meet in the contract, never in code. */
export const servicesApart: Rule = (files) =>
  imports(files, (path, { file = "" }) => {
    const [from, to] = [serviceOf(path), serviceOf(file)];
    return from !== undefined && to !== undefined && from !== to && `imports ${file} of another service`;
  });

/** Arrows fall: what runs stands on libs, libs on the contract, the contract on nothing of ours. */
export const arrowsFall: Rule = (files) =>
  imports(files, (path, { file = "", specifier }) => {
    const higher = inside(path, "proto/gen")
      ? file !== "" && !inside(file, "proto/gen")
      : inside(path, "libs")
        ? inside(file, "services", "dev", "test", "migrations")
        : inside(path, "services", "migrations") && inside(file, "dev", "test");
    return (higher || basename(file) === "main.ts") && `may not import ${specifier}`;
  });

/** Tables, state machines and ciphers do not know the contract: rows become messages where it is spoken. */
export function ideasWithoutContract(rpcFiles: ReadonlySet<string>): Rule {
  return (files) =>
    imports(files, (path, { file = "" }) => {
      const name = basename(path);
      const speaks = contractSpeakers.test(name) || rpcFiles.has(name) || sharedByRpcs.has(name);
      const ideas = serviceOf(path) !== undefined && serviceOf(path) !== "gateway";
      return ideas && !speaks && inside(file, "proto/gen") && `is no place for ${file}`;
    });
}

/** Each outside package, each cipher and the environment has one door. */
export const oneDoor: Rule = (files) => [
  ...imports(files, (path, imported) => {
    const open = doors[imported.package ?? ""]?.some((door) =>
      door.endsWith("/") ? path.startsWith(door) : door === path,
    );
    return runs(path) && open === false && `imports ${imported.specifier}, whose door is elsewhere`;
  }),
  ...imports(files, (path, { specifier, names }) => {
    const found = specifier === "node:crypto" ? names.filter((name) => ciphers.test(name)) : [];
    return runs(path) && path !== cipherDoor && found.length > 0 && `uses ${found.join(", ")} beside ${cipherDoor}`;
  }),
  ...each(files, (path, { environmentRead }) => [
    runs(path) && path !== environmentDoor && environmentRead && `reads process.env beside ${environmentDoor}`,
  ]),
];

/** No file reaches itself through its imports; types count. */
export const noCircle: Rule = (files) => {
  const state = new Map<string, "open" | "done">();
  const circles: string[] = [];
  const visit = (path: string, way: readonly string[]): void => {
    if (state.get(path) === "open") circles.push([...way.slice(way.indexOf(path)), path].join(" -> "));
    if (state.has(path)) return;
    state.set(path, "open");
    for (const { file } of files.get(path)?.imports ?? []) if (file !== undefined) visit(file, [...way, path]);
    state.set(path, "done");
  };
  for (const path of files.keys()) visit(path, []);
  return circles;
};

/** What a process runs on is a dependency, what only dev and test use is not, and nothing is listed for nobody. */
export function dependenciesDeclared(declared: {
  readonly dependencies: Readonly<Record<string, string>>;
  readonly devDependencies: Readonly<Record<string, string>>;
}): Rule {
  return (files) => {
    const running = new Set(Object.keys(declared.dependencies));
    const all = new Set([...running, ...Object.keys(declared.devDependencies)]);
    const used = new Set(
      [...files].flatMap(([path, { imports: list }]) => (runs(path) ? list : [])).map((i) => i.package),
    );
    return [
      ...imports(files, (path, { package: name }) => {
        if (name === undefined || name.startsWith("node:")) return undefined;
        return !(runs(path) ? running : all).has(name) && `imports ${name}, which is not among its dependencies`;
      }),
      ...[...running]
        .filter((name) => !used.has(name))
        .map((name) => `package.json: nothing that runs imports ${name}`),
    ];
  };
}

/** `#libs/` and `#proto/` from elsewhere, relative paths inside a folder, and every path leads to a file. */
export const importPaths: Rule = (files) =>
  imports(files, (path, { file, specifier }) => {
    if (file === undefined) return undefined;
    if (!files.has(file)) return `imports ${specifier}, which is not there`;
    const near = sourceFolder(path) === sourceFolder(file);
    if (near && specifier.startsWith("#")) return `reaches its own folder as ${specifier}: write ./${basename(file)}`;
    return !near && inside(file, "libs", "proto/gen") && specifier.startsWith(".") && `reaches ${file} by ${specifier}`;
  });

/** Names that became hubs of circles elsewhere, default exports, long files, files that do not say what they are for. */
export const filesInForm: Rule = (files) =>
  each(files, (path, { text, defaultExported }) => {
    const lines = text.split("\n").length - 1;
    return handwritten(path)
      ? [
          hubNames.has(basename(path)) && `is named like a hub, not after what it exports`,
          defaultExported && !path.endsWith(".d.ts") && "has a default export",
          lines > longestFile && `has ${lines} lines: ${longestFile} at most`,
          !/^(?:#!.*\n)?(?:\/\/|\/\*)/.test(text) && "does not open with a comment that says what it is for",
        ]
      : [];
  });

/** What speaks without TLS is for benches alone. */
export const noPlaintext: Rule = (files) =>
  each(files, (path, { text }) => [
    inside(path, "services", "dev") && text.includes("plaintextAddress") && "listens without TLS",
  ]);

/** Nothing of one machine, and no secret that would be in force where nobody set one. */
export const nothingPrivate: Rule = (files) =>
  each(files, (path, { text }) => [
    handwritten(path) && machinePaths.test(text) && `holds a path of a machine: ${machinePaths.exec(text)?.[0]}`,
    runs(path) && handwritten(path) && secretValue.test(text) && "holds what looks like a secret",
    runs(path) && secretDefault.test(text) && "gives a secret setting a default",
  ]);
