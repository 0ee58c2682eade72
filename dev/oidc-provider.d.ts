// The part of oidc-provider that the sandbox uses: the package ships no types of its own.
declare module "oidc-provider" {
  import type { IncomingMessage, ServerResponse } from "node:http";

  /** What is stored for one token, grant, session or interaction. */
  export interface AdapterPayload {
    readonly grantId?: string;
    readonly uid?: string;
    readonly userCode?: string;
    consumed?: number;
    readonly [name: string]: unknown;
  }

  export interface Adapter {
    upsert(id: string, payload: AdapterPayload, expiresInSeconds?: number): Promise<void>;
    find(id: string): Promise<AdapterPayload | undefined>;
    findByUid(uid: string): Promise<AdapterPayload | undefined>;
    findByUserCode(userCode: string): Promise<AdapterPayload | undefined>;
    consume(id: string): Promise<void>;
    destroy(id: string): Promise<void>;
    revokeByGrantId(grantId: string): Promise<void>;
  }

  export interface Context {
    body: unknown;
    type: string;
    readonly oidc: {
      readonly route: string;
      readonly provider: Provider;
      readonly params?: Readonly<Record<string, string | undefined>>;
      readonly result?: { readonly consent?: { readonly grantId?: string } };
    };
  }

  export interface Client {
    readonly clientId: string;
    grantTypeAllowed(grantType: string): boolean;
  }

  export interface Account {
    readonly accountId: string;
    claims(): Promise<{ readonly sub: string } & Readonly<Record<string, unknown>>>;
  }

  export interface AccessToken {
    readonly accountId: string;
    readonly grantId: string;
    readonly clientId: string;
  }

  export interface Grant {
    addOIDCScope(scope: string): void;
    save(): Promise<string>;
  }

  export interface Interaction {
    readonly uid: string;
    readonly params: Readonly<Record<string, string | undefined>>;
  }

  export type InteractionResult =
    | { readonly login: { readonly accountId: string }; readonly consent: { readonly grantId: string } }
    | { readonly error: string; readonly error_description: string };

  export interface TokenModel {
    readonly prototype: { generateTokenId(): string };
  }

  export class Provider {
    constructor(issuer: string, configuration: Readonly<Record<string, unknown>>);
    readonly Grant: {
      new (about: { readonly accountId: string; readonly clientId: string }): Grant;
      find(id: string): Promise<Grant | undefined>;
    };
    readonly AccessToken: TokenModel & { find(value: string): Promise<AccessToken | undefined> };
    readonly RefreshToken: TokenModel;
    readonly AuthorizationCode: TokenModel;
    callback(): (request: IncomingMessage, response: ServerResponse) => Promise<void>;
    interactionDetails(request: IncomingMessage, response: ServerResponse): Promise<Interaction>;
    interactionFinished(
      request: IncomingMessage,
      response: ServerResponse,
      result: InteractionResult,
      options: { readonly mergeWithLastSubmission: boolean },
    ): Promise<void>;
    on(event: "grant.success" | "grant.revoked", listener: (context: Context) => void): this;
    on(event: "grant.error" | "server_error", listener: (context: Context, error: Error) => void): this;
  }

  export const errors: { readonly SessionNotFound: new (description: string) => Error };
}
