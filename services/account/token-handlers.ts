// The access tokens that callers get for their client credentials or their connect token, and the keys to verify them with.
import type { IdentityClaims } from "#libs/access-tokens.ts";
import { type Actor, type IssueAccessTokenRequest, MemberRole } from "#proto/deputy/account/v1/projects.ts";
import { authenticateApiClient } from "./api-clients.ts";
import { connectTokenIdentity } from "./authenticate.ts";
import { findConnectToken, invalidConnectToken } from "./connect-tokens.ts";
import type { HandlerGroup } from "./handler-group.ts";
import type { AccountDatabase } from "./schema.ts";
import { requestedScopes } from "./scopes.ts";
import type { TokenKeys } from "./token-keys.ts";

const accessTokenMs = 3_600_000;

export function tokenHandlers(
  { db, tokenKeys }: { db: AccountDatabase; tokenKeys: TokenKeys },
  now: () => number,
): HandlerGroup<"issueAccessToken" | "getTokenKeys"> {
  async function grantOf({ grant, scope }: IssueAccessTokenRequest): Promise<IdentityClaims & { expireMs: number }> {
    if (grant?.$case === "connectToken") {
      const row = await findConnectToken(db, grant.value, new Date(now()));
      if (row === undefined) throw invalidConnectToken();
      const { subject, projectId, environment, externalUserId, scopes, actor, expireMs } = connectTokenIdentity(row);
      return {
        sub: subject,
        project_id: projectId,
        environment,
        external_user_id: externalUserId,
        scope: requestedScopes("scope", scope, scopes).join(" "),
        ...(actor !== undefined && { actor: { member_id: actor.memberId, role: actor.role } }),
        expireMs,
      };
    }
    const { clientId = "", clientSecret = "", actor } = grant?.value ?? {};
    const client = await authenticateApiClient(db, clientId, clientSecret, new Date(now()));
    return {
      sub: client.id,
      project_id: client.projectId,
      scope: requestedScopes("scope", scope, client.scopes).join(" "),
      ...(actor !== undefined && { actor: actorClaim(actor) }),
      expireMs: now() + accessTokenMs,
    };
  }

  return {
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

const roleNames = {
  [MemberRole.OWNER]: "owner",
  [MemberRole.ADMIN]: "admin",
  [MemberRole.MEMBER]: "member",
  // The contract lets nobody send it; the least right, should it come all the same.
  [MemberRole.UNSPECIFIED]: "member",
} as const;

/**
 * Any client may name any member: its own right is the project's, with no member at all, and every member's is a part of it. Its
 * scopes hold beside that. Who the members are, and what role they have, the project alone knows.
 */
function actorClaim({ memberId, role }: Actor): NonNullable<IdentityClaims["actor"]> {
  return { member_id: memberId, role: roleNames[role] };
}
