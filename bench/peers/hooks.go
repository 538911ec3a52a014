// An application that gateways ask: yes to everything, at once or after a while; a message is its own answer.
// Usage: hooks HOST:PORT DELAY
package main

import (
	"io"
	"log"
	"net/http"
	"os"
	"time"
)

func main() {
	delay, err := time.ParseDuration(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	answer := func(response http.ResponseWriter, request *http.Request) {
		body, _ := io.ReadAll(request.Body)
		time.Sleep(delay)
		if request.Header.Get("ce-type") != "tidegate.message" {
			response.WriteHeader(http.StatusNoContent)
			return
		}
		response.Header().Set("Content-Type", "application/json")
		response.Write(body)
	}
	log.Fatal(http.ListenAndServe(os.Args[1], http.HandlerFunc(answer)))
}
