// The audit of management actions: who did what to what, read by filters, newest first, and written by nobody but the change.
import { sql } from "kysely";
import { expect, test } from "vitest";
import { insertAuditEntries } from "../../services/account/audit-entries.ts";
import { call, newConnectToken, newProject, startAccount } from "./harness.ts";

const account = await startAccount();
const { operator, api, gateway, db } = account;

const operatorCall = { caller: { service: "operator" }, requestId: "request-of-the-test" };

/** A project whose audit is written by the test alone, an entry a second; the oldest first. */
async function projectWithEntries(...entries: { actor?: string; action?: string; resourceId?: string }[]) {
  const projectId = `proj_audit${Math.random().toString(36).slice(2)}`;
  const startMs = Date.UTC(2026, 0, 1);
  for (const [n, { actor = "operator", action = "UpdateProject", resourceId = "r" }] of entries.entries()) {
    const by = { ...operatorCall, caller: { service: actor } };
    const entry = { projectId, action, resourceId, before: { n }, after: { n: n + 1, list: ["a"], nothing: null } };
    await insertAuditEntries(db, by, new Date(startMs + n * 1000), entry);
  }
  const list = async (more = {}) => (await operator.listAuditEntries({ projectId, ...more }, call())).entries;
  return { projectId, list, at: (seconds: number) => new Date(startMs + seconds * 1000) };
}

const numbers = (entries: readonly { before: { [key: string]: unknown } | undefined }[]) =>
  entries.map(({ before }) => before?.n);

test("gives entries newest first, whole", async () => {
  const { list, at } = await projectWithEntries({}, { actor: "gateway", action: "SetWebhook", resourceId: "whk_1" });
  expect(await list()).toEqual([
    {
      id: expect.stringMatching(/^aud_\w{22}$/),
      createTime: at(1),
      actor: "service:gateway",
      action: "SetWebhook",
      resourceId: "whk_1",
      requestId: "request-of-the-test",
      before: { n: 1 },
      after: { n: 2, list: ["a"], nothing: null },
    },
    expect.objectContaining({ createTime: at(0), actor: "service:operator", before: { n: 0 } }),
  ]);
});

test("gives names within what is told as they were written, at whatever depth", async () => {
  const definition = {
    base_url: "https://a.test",
    proxyUrl: { camelCase: 1, snake_case: [{ deep_key: 2, deepKey: 3 }] },
  };
  const projectId = `proj_audit${Math.random().toString(36).slice(2)}`;
  const entry = { projectId, action: "UpdateApp", resourceId: "r", before: definition, after: definition };
  await insertAuditEntries(db, operatorCall, new Date(), entry);
  const { entries } = await operator.listAuditEntries({ projectId }, call());
  expect(entries).toMatchObject([{ before: definition, after: definition }]);
});

test("filters by actor, action, resource and time, and by all of them together", async () => {
  const { list, at } = await projectWithEntries(
    { actor: "one", action: "A", resourceId: "x" },
    { actor: "two", action: "A", resourceId: "y" },
    { actor: "one", action: "B", resourceId: "x" },
    { actor: "one", action: "A", resourceId: "x" },
  );
  expect(numbers(await list({ actor: "service:one" }))).toEqual([3, 2, 0]);
  expect(numbers(await list({ action: "A" }))).toEqual([3, 1, 0]);
  expect(numbers(await list({ resourceId: "y" }))).toEqual([1]);
  expect(numbers(await list({ startTime: at(1) }))).toEqual([3, 2, 1]);
  expect(numbers(await list({ endTime: at(1) }))).toEqual([0]);
  expect(numbers(await list({ startTime: at(1), endTime: at(3) }))).toEqual([2, 1]);
  const all = { actor: "service:one", action: "A", resourceId: "x", startTime: at(1), endTime: at(9) };
  expect(numbers(await list(all))).toEqual([3]);
  expect(await list({ action: "a" })).toEqual([]);
});

test("pages without gaps or repeats, entries of one instant and new ones included", async () => {
  const { projectId } = await projectWithEntries();
  const time = new Date();
  const write = (n: number, when = time) =>
    insertAuditEntries(db, operatorCall, when, { projectId, action: "A", resourceId: "r", before: { n } });
  for (let n = 0; n < 25; n += 1) await write(n);
  const seen: unknown[] = [];
  let pageToken = "";
  do {
    const page = await operator.listAuditEntries({ projectId, pageSize: 10, pageToken }, call());
    seen.push(...numbers(page.entries));
    pageToken = page.nextPageToken;
    await write(100 + seen.length, new Date(time.getTime() + 60_000));
  } while (pageToken !== "");
  expect(seen).toHaveLength(25);
  expect(new Set(seen)).toEqual(new Set(Array.from({ length: 25 }, (_, n) => n)));
  const bad = operator.listAuditEntries({ projectId, pageToken: "x" }, call());
  await expect(bad).rejects.toMatchObject({ code: "INVALID_ARGUMENT", violations: [{ field: "page_token" }] });
});

test("gives a project's callers its own entries, when they have the scope for it", async () => {
  const acme = await newProject(account);
  const other = await newProject(account);
  const { entries } = await api.listAuditEntries({}, call(acme.token));
  expect(entries.map(({ action }) => action)).toEqual(["CreateApiClient", "CreateProject"]);
  const foreign = api.listAuditEntries({ projectId: other.projectId }, call(acme.token));
  await expect(foreign).rejects.toMatchObject({ code: "NOT_FOUND", message: "No such project." });
  const reader = await newProject(account, ["connect:audit:read"]);
  expect((await gateway.listAuditEntries({}, call(reader.token))).entries).toHaveLength(2);
  const settings = await newProject(account, ["connect:projects:read", "connect:projects:write", "connect:users:read"]);
  await expect(api.listAuditEntries({}, call(settings.token))).rejects.toMatchObject({
    code: "PERMISSION_DENIED",
    reason: "SCOPE_MISSING",
  });
  const browser = api.listAuditEntries({}, call(await newConnectToken(account, acme.token)));
  await expect(browser).rejects.toMatchObject({ reason: "CONNECT_TOKEN_NOT_ALLOWED" });
  await expect(operator.listAuditEntries({}, call())).rejects.toMatchObject({ violations: [{ field: "project_id" }] });
});

test("is not for plain members, of whom others' accounts are none of the business", async () => {
  const { clientId, clientSecret } = await newProject(account);
  const read = async (role: 2 | 3) => {
    const value = { clientId, clientSecret, actor: { memberId: "mel", role } };
    const { accessToken } = await api.issueAccessToken({ grant: { $case: "clientCredentials", value } }, call());
    return api.listAuditEntries({}, call(accessToken));
  };
  await expect(read(3)).rejects.toMatchObject({ code: "PERMISSION_DENIED", reason: "MEMBER_NOT_ALLOWED" });
  expect((await read(2)).entries).toHaveLength(2);
});

test("cannot be rewritten or shortened by the service", async () => {
  await newProject(account);
  const denied = /permission denied for table audit_entries/;
  await expect(db.updateTable("auditEntries").set({ actor: "nobody" }).execute()).rejects.toThrow(denied);
  await expect(db.deleteFrom("auditEntries").execute()).rejects.toThrow(denied);
  await expect(sql`truncate audit_entries`.execute(db)).rejects.toThrow(denied);
});

test("has no entry of a change that did not come about", async () => {
  const { projectId, token } = await newProject(account);
  await account.owner.query(
    "alter table audit_entries add constraint stuck check (action <> 'UpdateProject') not valid",
  );
  try {
    await expect(api.updateProject({ name: "lost" }, call(token))).rejects.toMatchObject({ code: "INTERNAL" });
  } finally {
    await account.owner.query("alter table audit_entries drop constraint stuck");
  }
  expect((await api.getProject({}, call(token))).project?.name).toBe("Acme");
  await operator.deleteProject({ projectId }, call());
  // The audit outlives what it is about.
  const { entries } = await operator.listAuditEntries({ projectId }, call());
  expect(entries.map(({ action }) => action)).toEqual(["DeleteProject", "CreateApiClient", "CreateProject"]);
});
