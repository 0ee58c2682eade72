// A project's webhook over REST.
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import { StatusError } from "#libs/errors.ts";
import type { Client } from "#libs/rpc.ts";
import type { AccountServiceDefinition } from "#proto/deputy/account/v1/account_service.ts";
import type { Webhook } from "#proto/deputy/account/v1/events.ts";
import { bodyOf, callerCall, scopeOf } from "./requests.ts";

type Methods = "setWebhook" | "getWebhook" | "deleteWebhook" | "rotateWebhookKey";

/** What is asked about webhooks. */
export type WebhookClient = Pick<Client<typeof AccountServiceDefinition>, Methods>;

const setBody = z.object({ url: z.string().min(1).max(2048) });

/** Adds the routes. */
export function addWebhookRoutes(app: FastifyInstance, account: WebhookClient): void {
  for (const prefix of ["/v1/connect/:project_id", "/v1/connect"]) {
    app.get(`${prefix}/webhook`, async (request) => {
      const { webhook } = await account.getWebhook(scopeOf(request), callerCall(request));
      return { data: webhook ? webhookJson(webhook) : null };
    });

    app.put(`${prefix}/webhook`, async (request) => {
      const { url } = bodyOf(setBody, request);
      const { webhook, signingKey } = await account.setWebhook({ ...scopeOf(request), url }, callerCall(request));
      return { data: webhookJson(webhook, signingKey) };
    });

    app.delete(`${prefix}/webhook`, async (request, reply) => {
      await account.deleteWebhook(scopeOf(request), callerCall(request));
      return reply.code(204).send();
    });

    app.post(`${prefix}/webhook/regenerate_signing_key`, async (request) => {
      const { webhook, signingKey } = await account.rotateWebhookKey(scopeOf(request), callerCall(request));
      return { data: webhookJson(webhook, signingKey) };
    });
  }
}

/** Times are in seconds since 1970. The key is there when it was made by this call, and never again. */
function webhookJson(webhook: Webhook | undefined, signingKey = "") {
  if (webhook === undefined) throw new StatusError("INTERNAL", "INTERNAL", "The answer has no webhook.");
  const { id, url, createTime, updateTime } = webhook;
  return {
    ...{ id, url, signing_key_set: true, created_at: epochSeconds(createTime), updated_at: epochSeconds(updateTime) },
    ...(signingKey !== "" && { signing_key: signingKey }),
  };
}

function epochSeconds(time: Date | undefined): number | null {
  return time === undefined ? null : Math.floor(time.getTime() / 1000);
}
