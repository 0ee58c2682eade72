// `npm start`: the whole of Deputy on this machine, with a sandbox provider to try it on. Ctrl-C stops it; a second start
// finds everything as it was.
import { readConfig } from "#libs/config.ts";
import { listeners, type Ports } from "./ports.ts";
import { type Stack, startStack } from "./stack.ts";

const port = (name: keyof typeof listeners, what: string) =>
  ({ kind: "integer", default: String(listeners[name].port), help: `Port of ${what}, on 127.0.0.1.` }) as const;

const config = readConfig({
  DEPUTY_STATE_DIRECTORY: {
    kind: "path",
    default: ".deputy",
    help: "Where everything is kept; delete it to begin anew.",
  },
  DEPUTY_GATEWAY_PORT: port("gateway", "the gateway: REST, connect page, OAuth callback"),
  DEPUTY_ACCOUNT_PORT: port("account", "AccountService for other services"),
  DEPUTY_VAULT_PORT: port("vault", "CredentialVault"),
  DEPUTY_PROXY_PORT: port("proxy", "ProxyService for other services"),
  DEPUTY_ACCOUNT_PUBLIC_PORT: port("accountPublic", "AccountService for callers with a bearer token"),
  DEPUTY_PROXY_PUBLIC_PORT: port("proxyPublic", "ProxyService for callers with a bearer token"),
  DEPUTY_SANDBOX_PORT: port("sandbox", "the sandbox provider"),
  DEPUTY_SANDBOX_ACCESS_TOKEN_SECONDS: {
    kind: "integer",
    default: "3600",
    help: "Lifetime of the sandbox's access tokens.",
  },
  DEPUTY_LOG_LEVEL: { kind: "text", default: "info", help: "Level of the logs: debug, info, warn, error, silent." },
});

const ports: Ports = {
  gateway: config.DEPUTY_GATEWAY_PORT,
  account: config.DEPUTY_ACCOUNT_PORT,
  vault: config.DEPUTY_VAULT_PORT,
  proxy: config.DEPUTY_PROXY_PORT,
  accountPublic: config.DEPUTY_ACCOUNT_PUBLIC_PORT,
  proxyPublic: config.DEPUTY_PROXY_PUBLIC_PORT,
  sandbox: config.DEPUTY_SANDBOX_PORT,
};

try {
  const stack = await startStack({
    stateDirectory: config.DEPUTY_STATE_DIRECTORY,
    ports,
    durable: true,
    accessTokenSeconds: config.DEPUTY_SANDBOX_ACCESS_TOKEN_SECONDS,
    logLevel: config.DEPUTY_LOG_LEVEL,
    onProgress: (step) => console.log(`${step} ...`),
  });
  let stopping = false;
  const stop = async (status: number) => {
    if (stopping) return;
    stopping = true;
    console.log("stopping ...");
    await stack.stop();
    process.exit(status);
  };
  process.on("SIGINT", () => stop(0));
  process.on("SIGTERM", () => stop(0));
  stack.broken.catch((error: Error) => {
    if (stopping) return;
    console.error(error.message);
    stop(1);
  });
  console.log(describe(stack));
  console.log("ready");
} catch (error) {
  console.error((error as Error).message);
  process.exit(1);
}

/** Where everything is, and lines to copy. */
function describe({ connection, state }: Stack): string {
  const { gateway_url, grpc, sandbox } = connection;
  const echo = Buffer.from(`${sandbox.api_url}/echo/hello`).toString("base64url");
  return `
gateway      ${gateway_url}   REST, connect page
account      ${grpc.account}          gRPC, bearer token
proxy        ${grpc.proxy}          gRPC, bearer token
vault        ${grpc.vault}          gRPC, services only
sandbox      ${new URL(sandbox.api_url).origin}  an OAuth provider to try it on
connection   ${state.connectionFile}
logs         ${state.logs}

In another terminal, get a token and a link to connect the sandbox account of user-1, and open the link in a browser
(the sandbox's certificate comes from your own authority, so the browser asks):

  source ${state.shellFile}
  TOKEN=$(curl -s $GATEWAY/v1/oauth/token -d grant_type=client_credentials -d client_id=$CLIENT_ID -d client_secret=$CLIENT_SECRET | sed 's/.*"access_token":"\\([^"]*\\)".*/\\1/')
  auth=(-H "authorization: Bearer $TOKEN" -H "x-pd-environment: development")
  curl -s $GATEWAY/v1/connect/$PROJECT/tokens "\${auth[@]}" -H 'content-type: application/json' -d '{"external_user_id":"user-1","app_id":"${sandbox.app}"}'

Forward a request with the account's credential, over REST:

  ACCOUNT=$(curl -s "$GATEWAY/v1/connect/$PROJECT/accounts?external_user_id=user-1&app=${sandbox.app}" "\${auth[@]}" | grep -o 'apn_[0-9A-Za-z]*' | head -1)
  curl -s "$GATEWAY/v1/connect/$PROJECT/proxy/${echo}?external_user_id=user-1&account_id=$ACCOUNT" "\${auth[@]}"

and over gRPC:

  npx buf curl --schema proto --protocol grpc --cacert $CA_FILE -H "authorization: Bearer $TOKEN" --timeout 10s \\
    -d '{"environment":"ENVIRONMENT_DEVELOPMENT","external_user_id":"user-1","account_id":"'$ACCOUNT'","method":"GET","url":"/echo/hello"}' \\
    https://$PROXY_SERVICE/deputy.proxy.v1.ProxyService/Forward

Or watch all of it done by a script: npm run demo
`;
}
