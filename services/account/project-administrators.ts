// What a member may do to a project as such: a caller that acts for a member has at most that member's right, and a project is
// the matter of the workspace's owner and administrators. A caller that acts for nobody is the project itself.
import type { Caller } from "#libs/callers.ts";
import { StatusError } from "#libs/errors.ts";

/** Throws PERMISSION_DENIED `MEMBER_NOT_ALLOWED` when the caller acts for a member who is neither. */
export function requireAdministrator({ token }: Caller): void {
  const role = token?.actor?.role;
  if (role === undefined || role === "owner" || role === "admin") return;
  const message = "The member that the caller acts for is neither owner nor admin of the workspace.";
  throw new StatusError("PERMISSION_DENIED", "MEMBER_NOT_ALLOWED", message);
}
