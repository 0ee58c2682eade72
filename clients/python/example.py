"""Deputy from Python: get a token, find a user's account, send a request on its behalf, read a refusal.

    python example.py [connection.json] [external_user_id] [account_id]

`npm start` writes .deputy/connection.json; `npm run generate:clients` writes gen/, which has to be on the Python path.
"""

import json
import sys

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from deputy.account.v1 import account_service_pb2_grpc, accounts_pb2, environment_pb2, projects_pb2
from deputy.proxy.v1 import proxy_service_pb2, proxy_service_pb2_grpc

# Every call needs a deadline: Deputy refuses calls without one. A forwarded request may itself take 30 s.
CALL_SECONDS = 10
FORWARD_SECONDS = 35

# Bodies go up to 8 MiB; gRPC's own limit for an answer is 4 MiB.
LARGE_ANSWERS = [("grpc.max_receive_message_length", 9 * 1024 * 1024)]


def detail(error: grpc.RpcError, message):
    """Fills `message` with the error detail of its type; it stays empty where the server sent none."""
    status = rpc_status.from_call(error)
    for packed in status.details if status else []:
        if packed.Unpack(message):
            break
    return message


def describe(error: grpc.RpcError) -> str:
    """A refusal for a log: the reason is stable and made for programs, the message is for people."""
    # A call that never reached a service has neither.
    reason = detail(error, error_details_pb2.ErrorInfo()).reason or "-"
    request_id = detail(error, error_details_pb2.RequestInfo()).request_id or "-"
    return f"{error.code().name} {reason}: {error.details()} (request id {request_id})"


def main(path=".deputy/connection.json", external_user_id="", account_id="") -> None:
    with open(path, encoding="utf-8") as file:
        connection = json.load(file)
    with open(connection["ca_file"], "rb") as file:
        tls = grpc.ssl_channel_credentials(root_certificates=file.read())
    # What every request is keyed by: the project, and one of its two environments.
    environment = environment_pb2.Environment.Value("ENVIRONMENT_" + connection["environment"].upper())
    scope = {"project_id": connection["project_id"], "environment": environment}

    # The access token lives for an hour: keep it, and ask for the next one shortly before `expire_time`.
    with grpc.secure_channel(connection["grpc"]["account"], tls) as channel:
        client = {"client_id": connection["client_id"], "client_secret": connection["client_secret"]}
        request = projects_pb2.IssueAccessTokenRequest(client_credentials=client)
        token = account_service_pb2_grpc.AccountServiceStub(channel).IssueAccessToken(request, timeout=CALL_SECONDS)
    bearer = grpc.composite_channel_credentials(tls, grpc.access_token_call_credentials(token.access_token))

    # A channel is a connection: make one per service and keep it.
    with (
        grpc.secure_channel(connection["grpc"]["account"], bearer) as account_channel,
        grpc.secure_channel(connection["grpc"]["proxy"], bearer, options=LARGE_ANSWERS) as proxy_channel,
    ):
        accounts = account_service_pb2_grpc.AccountServiceStub(account_channel)
        proxy = proxy_service_pb2_grpc.ProxyServiceStub(proxy_channel)

        request = accounts_pb2.ListAccountsRequest(**scope, external_user_id=external_user_id, page_size=10)
        for account in accounts.ListAccounts(request, timeout=CALL_SECONDS).accounts:
            print(f"account {account.id}: {account.app_slug} of {account.external_user_id}")
            if account_id in ("", account.id):
                account_id, external_user_id = account.id, account.external_user_id
        if account_id == "":
            sys.exit("No account yet: connect one first.")

        # The credential is put in on the way. A path is joined to the app's base URL; `/echo` is one of the sandbox's.
        scope |= {"external_user_id": external_user_id, "account_id": account_id}
        request = proxy_service_pb2.ForwardRequest(**scope, method="GET", url="/echo?from=python")
        response = proxy.Forward(request, timeout=FORWARD_SECONDS)
        print(f"forwarded: status {response.status}, attempts {response.attempts}")
        print(response.body.decode().strip())

        # A credential goes to the hosts of its app and nowhere else.
        request = proxy_service_pb2.ForwardRequest(**scope, method="GET", url="https://example.com/")
        try:
            proxy.Forward(request, timeout=FORWARD_SECONDS)
        except grpc.RpcError as error:
            print(f"refused: {describe(error)}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except grpc.RpcError as error:
        sys.exit(f"failed: {describe(error)}")
