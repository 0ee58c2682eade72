// Projects and users over REST: requests as existing clients send them, the calls that they become, and the JSON that comes back.
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { StatusError } from "#libs/errors.ts";
import { Environment } from "#proto/deputy/account/v1/environment.ts";
import { connectToken, type GatewayFixture, json, startGatewayFixture, time } from "./gateway-fixture.ts";

let gateway: GatewayFixture;
beforeAll(async () => {
  gateway = await startGatewayFixture();
});
afterAll(() => gateway.stop());
beforeEach(() => gateway.reset());

const acme = { id: "proj_1", name: "n", app_name: "App", support_email: null, connect_require_key_auth_test: true };
const lastPage = { count: 1, total_count: 1, start_cursor: null, end_cursor: null };
const withConnectToken = { headers: { authorization: `Bearer ${connectToken}` } };
const patch = (body: unknown) => ({ ...json(body), method: "PATCH" });

describe("projects", () => {
  it("are listed, searched and paged", async () => {
    const answer = await gateway.send("/v1/connect/projects?q=x");
    expect([answer.status, await answer.json()]).toEqual([200, { data: [acme], page_info: lastPage }]);
    await gateway.send("/v1/connect/projects?after=a&limit=2");
    expect(gateway.asked).toMatchObject([
      { method: "listProjects", request: { query: "x", pageSize: 0, pageToken: "" } },
      { method: "listProjects", request: { query: "", pageSize: 2, pageToken: "a" } },
    ]);
  });

  it("are made with 201 where the account service lets the caller", async () => {
    const body = { name: "n", app_name: "App", support_email: "s@x.io", connect_require_key_auth_test: true };
    const answer = await gateway.send("/v1/connect/projects", json(body));
    expect([answer.status, await answer.json()]).toEqual([201, acme]);
    const request = { name: "n", appName: "App", supportEmail: "s@x.io", requireKeyAuthTest: true };
    expect(gateway.asked).toMatchObject([{ method: "createProject", request }]);
  });

  it("are refused with 403 and the service's own words where it does not", async () => {
    const words = "The operator makes projects.";
    gateway.changeAccount({
      createProject: () => Promise.reject(new StatusError("PERMISSION_DENIED", "OPERATOR_REQUIRED", words)),
    });
    const answer = await gateway.send("/v1/connect/projects", json({ name: "n" }));
    expect([answer.status, await answer.json()]).toEqual([403, { error: words, code: "OPERATOR_REQUIRED" }]);
  });

  it.each([
    ["POST", "/v1/connect/projects", {}, "name"],
    [
      "POST",
      "/v1/connect/projects",
      { name: "n", connect_require_key_auth_test: "yes" },
      "connect_require_key_auth_test",
    ],
    ["PATCH", "/v1/connect/projects/proj_1", { name: "" }, "name"],
    ["PATCH", "/v1/connect/projects/proj_1", { app_name: "x".repeat(251) }, "app_name"],
  ])("with %s %s and %j are refused with 400 naming %s", async (method, path, body, field) => {
    const answer = await gateway.send(path, { ...json(body), method });
    expect(answer.status).toBe(400);
    expect((await answer.json()) as object).toMatchObject({ error: expect.stringMatching(`^${field}: `) });
    expect(gateway.asked).toEqual([]);
  });

  it("are retrieved, changed in what is given, and deleted", async () => {
    const found = await gateway.send("/v1/connect/projects/proj_1");
    expect([found.status, await found.json()]).toEqual([200, acme]);
    const changed = await gateway.send("/v1/connect/projects/proj_1", patch({ name: "n2" }));
    expect([changed.status, await changed.json()]).toEqual([200, { ...acme, name: "n2" }]);
    const gone = await gateway.send("/v1/connect/projects/proj_1", { method: "DELETE" });
    expect([gone.status, await gone.text()]).toEqual([204, ""]);
    expect(gateway.asked.map(({ method }) => method)).toEqual(["getProject", "updateProject", "deleteProject"]);
    expect(gateway.asked[1]?.request).toEqual({
      projectId: "proj_1",
      name: "n2",
      appName: undefined,
      supportEmail: undefined,
      requireKeyAuthTest: undefined,
    });
  });

  it("turn a setting off and a text empty, which is not the same as leaving them", async () => {
    await gateway.send(
      "/v1/connect/projects/proj_1",
      patch({ app_name: "", support_email: null, connect_require_key_auth_test: false }),
    );
    const { request } = gateway.asked[0] ?? {};
    expect(request).toMatchObject({ appName: "", requireKeyAuthTest: false });
    expect(request?.supportEmail).toBeUndefined();
  });

  it("have no logo yet, which is said with 404 and in words", async () => {
    const answer = await gateway.send("/v1/connect/projects/proj_1/logo", json({ logo: "data:image/png;base64,AAAA" }));
    expect([answer.status, await answer.json()]).toMatchObject([404, { code: "NOT_IMPLEMENTED" }]);
  });

  it("of others are 404, and so is every project for a user's browser 403", async () => {
    expect((await gateway.send("/v1/connect/projects/proj_2")).status).toBe(404);
    for (const path of ["/v1/connect/projects", "/v1/connect/projects/proj_1", "/v1/connect/users"]) {
      expect((await gateway.sendBare(path, withConnectToken)).status, path).toBe(403);
    }
    expect((await gateway.sendBare("/v1/connect/projects")).status).toBe(401);
  });
});

describe("a project's info", () => {
  const info = {
    apps: [
      { id: "app_slack", name_slug: "slack" },
      { id: null, name_slug: "gone" },
    ],
  };

  it("is given to servers by the project's path, to browsers with it and without", async () => {
    for (const answer of [
      await gateway.send("/v1/connect/proj_1/projects/info"),
      await gateway.sendBare("/v1/connect/proj_1/projects/info", withConnectToken),
      await gateway.sendBare("/v1/connect/projects/info", withConnectToken),
    ]) {
      expect([answer.status, await answer.json()]).toEqual([200, info]);
    }
    expect(gateway.asked.map(({ method, request }) => [method, request.projectId])).toEqual(
      Array.from({ length: 3 }, () => ["listProjectApps", "proj_1"]),
    );
  });

  it("is to servers, without the project's path, the project of that id", async () => {
    const answer = await gateway.send("/v1/connect/projects/info");
    expect([answer.status, await answer.json()]).toMatchObject([404, { code: "PROJECT_NOT_FOUND" }]);
  });
});

describe("users", () => {
  const ann = { id: "exu_1", external_id: "user-1", created_at: time.toISOString(), updated_at: time.toISOString() };

  it("are listed, searched and paged", async () => {
    const answer = await gateway.send("/v1/connect/proj_1/users?after=a&before=b&limit=2&q=us");
    expect([answer.status, await answer.json()]).toEqual([200, { data: [ann], page_info: lastPage }]);
    expect(gateway.asked).toMatchObject([
      {
        method: "listUsers",
        request: {
          projectId: "proj_1",
          environment: Environment.DEVELOPMENT,
          query: "us",
          pageSize: 2,
          pageToken: "a",
        },
      },
    ]);
  });

  it("are listed without the project in the path, which the token names", async () => {
    expect((await gateway.send("/v1/connect/users")).status).toBe(200);
    expect(gateway.asked).toMatchObject([{ method: "listUsers", request: { projectId: "proj_1" } }]);
  });
});
