// Projects, their API clients, and the access tokens that callers get.
import type { IdentityClaims } from "#libs/access-tokens.ts";
import { digest, randomText } from "#libs/ids.ts";
import type { IssueAccessTokenRequest } from "#proto/deputy/account/v1/projects.ts";
import { authenticateApiClient, insertApiClient } from "./api-clients.ts";
import { connectTokenIdentity } from "./authenticate.ts";
import { findConnectToken, invalidConnectToken } from "./connect-tokens.ts";
import type { HandlerGroup } from "./handler-group.ts";
import { apiClientMessage, projectMessage } from "./messages.ts";
import { getProject, insertProject } from "./projects.ts";
import type { AccountDatabase } from "./schema.ts";
import { checkScope, requestedScopes } from "./scopes.ts";
import type { TokenKeys } from "./token-keys.ts";
import { refuseUnbuilt } from "./unbuilt.ts";

const accessTokenMs = 3_600_000;

export function projectHandlers(
  { db, tokenKeys }: { db: AccountDatabase; tokenKeys: TokenKeys },
  now: () => number,
): HandlerGroup<"createProject" | "getProject" | "createApiClient" | "issueAccessToken" | "getTokenKeys"> {
  async function grantOf({ grant, scope }: IssueAccessTokenRequest): Promise<IdentityClaims & { expireMs: number }> {
    if (grant?.$case === "connectToken") {
      const row = await findConnectToken(db, grant.value, new Date(now()));
      if (row === undefined) throw invalidConnectToken();
      const { subject, projectId, environment, externalUserId, scopes, expireMs } = connectTokenIdentity(row);
      return {
        sub: subject,
        project_id: projectId,
        environment,
        external_user_id: externalUserId,
        scope: requestedScopes("scope", scope, scopes).join(" "),
        expireMs,
      };
    }
    const { clientId = "", clientSecret = "", actor } = grant?.value ?? {};
    // Nobody enforces yet what a member may do: a token that named one would have the project's full right.
    refuseUnbuilt("client_credentials.actor", actor);
    const client = await authenticateApiClient(db, clientId, clientSecret, new Date(now()));
    return {
      sub: client.id,
      project_id: client.projectId,
      scope: requestedScopes("scope", scope, client.scopes).join(" "),
      expireMs: now() + accessTokenMs,
    };
  }

  return {
    async createProject({ name, appName, supportEmail, requireKeyAuthTest }) {
      const project = { name, appName, supportEmail, requireKeyAuthTest };
      return { project: projectMessage(await insertProject(db, project, new Date(now()))) };
    },
    async getProject({ projectId }) {
      return { project: projectMessage(await getProject(db, projectId)) };
    },
    async createApiClient({ projectId, name, scopes }) {
      for (const scope of scopes) checkScope("scopes", scope);
      await getProject(db, projectId);
      const clientSecret = randomText();
      const row = await insertApiClient(
        db,
        {
          projectId,
          name,
          scopes: scopes.length > 0 ? scopes : ["*"],
          secretDigest: digest(clientSecret),
        },
        new Date(now()),
      );
      return { apiClient: apiClientMessage(row), clientSecret };
    },
    async issueAccessToken(request) {
      const { expireMs, ...claims } = await grantOf(request);
      const { token, expireTime } = await tokenKeys.sign(claims, now(), expireMs);
      return { accessToken: token, expireTime, scope: claims.scope };
    },
    async getTokenKeys() {
      return { keys: [...tokenKeys.published] };
    },
  };
}
