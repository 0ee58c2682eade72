// Deputy from Go: get a token, find a user's account, send a request on its behalf, read a refusal.
//
//	go run . [connection.json] [external_user_id] [account_id]
//
// `npm start` writes .deputy/connection.json; `npm run generate:clients` writes gen.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	accountv1 "deputy.example/clients/go/gen/deputy/account/v1"
	proxyv1 "deputy.example/clients/go/gen/deputy/proxy/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Every call needs a deadline: Deputy refuses calls without one. A forwarded request may itself take 30 s.
const (
	callTimeout    = 10 * time.Second
	forwardTimeout = 35 * time.Second
)

// Bodies go up to 8 MiB; gRPC's own limit for an answer is 4 MiB.
var largeAnswers = grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(9 << 20))

func main() {
	log.SetFlags(0)
	var connection struct {
		Grpc         struct{ Account, Proxy string }
		CAFile       string `json:"ca_file"`
		ProjectID    string `json:"project_id"`
		Environment  string
		ClientID     string `json:"client_id"`
		ClientSecret string `json:"client_secret"`
	}
	check(json.Unmarshal(must(os.ReadFile(argument(1, "../../.deputy/connection.json"))), &connection))
	externalUserID, accountID := argument(2, ""), argument(3, "")

	// A client connection is made once per service and kept; it is safe for concurrent use.
	tls := grpc.WithTransportCredentials(must(credentials.NewClientTLSFromFile(connection.CAFile, "")))
	accounts := accountv1.NewAccountServiceClient(must(grpc.NewClient(connection.Grpc.Account, tls)))
	proxy := proxyv1.NewProxyServiceClient(must(grpc.NewClient(connection.Grpc.Proxy, tls, largeAnswers)))

	// The access token lives for an hour: keep it, and ask for the next one shortly before ExpireTime.
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	token := must(accounts.IssueAccessToken(ctx, &accountv1.IssueAccessTokenRequest{
		Grant: &accountv1.IssueAccessTokenRequest_ClientCredentials{ClientCredentials: &accountv1.ClientCredentials{
			ClientId:     connection.ClientID,
			ClientSecret: connection.ClientSecret,
		}},
	}))
	authorized := metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+token.AccessToken)

	// Every request is keyed by the project and one of its two environments.
	environment := accountv1.Environment(accountv1.Environment_value["ENVIRONMENT_"+strings.ToUpper(connection.Environment)])
	ctx, cancel = context.WithTimeout(authorized, callTimeout)
	defer cancel()
	page := must(accounts.ListAccounts(ctx, &accountv1.ListAccountsRequest{
		ProjectId:      connection.ProjectID,
		Environment:    environment,
		ExternalUserId: externalUserID,
		PageSize:       10,
	}))
	for _, account := range page.Accounts {
		fmt.Printf("account %s: %s of %s\n", account.Id, account.AppSlug, account.ExternalUserId)
		if accountID == "" || accountID == account.Id {
			accountID, externalUserID = account.Id, account.ExternalUserId
		}
	}
	if accountID == "" {
		log.Fatal("No account yet: connect one first.")
	}

	forward := func(url string) (*proxyv1.ForwardResponse, error) {
		ctx, cancel := context.WithTimeout(authorized, forwardTimeout)
		defer cancel()
		return proxy.Forward(ctx, &proxyv1.ForwardRequest{
			ProjectId:      connection.ProjectID,
			Environment:    environment,
			ExternalUserId: externalUserID,
			AccountId:      accountID,
			Method:         "GET",
			Url:            url,
		})
	}
	// The credential is put in on the way. A path is joined to the app's base URL; `/echo` is one of the sandbox's.
	response := must(forward("/echo?from=go"))
	fmt.Printf("forwarded: status %d, attempts %d\n", response.Status, response.Attempts)
	fmt.Println(strings.TrimSpace(string(response.Body)))

	// A credential goes to the hosts of its app and nowhere else.
	if _, err := forward("https://example.com/"); err != nil {
		fmt.Println("refused:", describe(err))
	}
}

// describe tells a refusal for a log: the reason is stable and made for programs, the message is for people.
func describe(err error) string {
	refusal, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	// A call that never reached a service has neither.
	reason, requestID := "-", "-"
	for _, detail := range refusal.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			reason = detail.Reason
		case *errdetails.RequestInfo:
			requestID = detail.RequestId
		}
	}
	return fmt.Sprintf("%s %s: %s (request id %s)", refusal.Code(), reason, refusal.Message(), requestID)
}

func check(err error) {
	if err != nil {
		log.Fatalf("failed: %s", describe(err))
	}
}

func must[T any](value T, err error) T {
	check(err)
	return value
}

func argument(index int, otherwise string) string {
	if index < len(os.Args) {
		return os.Args[index]
	}
	return otherwise
}
