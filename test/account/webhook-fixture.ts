// What the tests of postings share: a receiver, the account service, and projects with a webhook that is looked at by hand.
import { afterAll, beforeEach } from "vitest";
import { openEgress } from "#libs/egress.ts";
import { deliverEvents } from "../../services/account/deliver-events.ts";
import { eventBodies } from "../../services/account/event-bodies.ts";
import { insertEvents, type NewEvent } from "../../services/account/events.ts";
import type { JobOptions } from "../../services/account/jobs.ts";
import { catalogsOver } from "../../services/account/own-apps.ts";
import { vaultSigner } from "../../services/account/signing-client.ts";
import { findWebhook, keyOf } from "../../services/account/webhook-endpoints.ts";
import { type Posting, startWebhookReceiver } from "../support/webhook-receiver.ts";
import { call, development, newProject, startAccount } from "./harness.ts";

/** Sets up what the tests of one file share. Call it at the top level of the file. */
export async function webhookFixture() {
  const receiver = await startWebhookReceiver();
  const account = await startAccount(undefined, [], { exemptTargets: [receiver.host] });
  const { api, operator, db, clock, now, log } = account;
  const egress = openEgress({ exemptTargets: [receiver.host], extraCa: receiver.ca });
  const options: JobOptions = {
    ...{ gatewayUrl: "https://deputy.example:8443", historyMs: 30 * 86_400_000 },
    db,
    log,
    sign: vaultSigner(db, account.vaultClient),
    bodies: eventBodies(catalogsOver(account.db, account.catalog)),
    outgoing: { egress, exemptTargets: [receiver.host] },
  };
  afterAll(async () => {
    await egress.close();
    await receiver.stop();
  });
  beforeEach(() => {
    receiver.answerWith(() => 200);
    clock.aheadMs = 0;
  });

  let projects = 0;
  /** A project with a webhook at a path of its own. */
  async function newHook() {
    const project = await newProject(account);
    const path = `/hook-${++projects}`;
    const { signingKey } = await api.setWebhook(
      { environment: development, url: receiver.url(path) },
      call(project.token),
    );
    const scope = { projectId: project.projectId, environment: development } as const;
    const webhook = await findWebhook(db, scope);
    if (webhook === undefined) throw new Error("no webhook");
    const key = keyOf(webhook);
    return {
      ...project,
      ...{ key, scope, signingKey, path },
      postings: () => receiver.postings.filter((posting) => posting.path === path),
      told: () => receiver.postings.filter((posting) => posting.path === path).map(numberOf),
      /** Looks once, as the queue's job does. */
      deliver: () => deliverEvents(options, key, now, new AbortController().signal),
      make: (accountId: string, ...numbers: number[]) =>
        db.transaction().execute((tx) => insertEvents(tx, new Date(now()), ...numbers.map((n) => made(accountId, n)))),
      // By the operator: tokens end when the clock is put forward.
      list: async () => (await operator.listEvents(scope, call())).events,
    };
    function made(accountId: string, n: number): NewEvent {
      const whose = { projectId: project.projectId, environment: development as 1, externalUserId: "ann", accountId };
      return { ...whose, type: "account.connected", data: { n, connectionId: `con_${accountId}` } };
    }
  }
  return { receiver, account, options, newHook };
}

/** What is in a posting. */
export const numberOf = ({ body }: Posting): number => JSON.parse(body).data.n;
export const accountOf = ({ body }: Posting): string => JSON.parse(body).data.account_id;
export const idOf = ({ headers }: Posting): string => headers["webhook-id"] ?? "";
