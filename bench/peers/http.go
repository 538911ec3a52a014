// The ledger's peer on Go's net/http: a plain answer, and a publish to nobody.
// Usage: http HOST:PORT
package main

import (
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"sync"
)

var (
	lock        sync.RWMutex
	subscribers = map[string][]chan []byte{}
)

func publish(response http.ResponseWriter, request *http.Request) {
	message, err := io.ReadAll(request.Body)
	if err != nil {
		http.Error(response, err.Error(), http.StatusBadRequest)
		return
	}
	channel := strings.TrimSuffix(strings.TrimPrefix(request.URL.Path, "/v1/channels/"), "/publish")
	lock.RLock()
	for _, subscriber := range subscribers[channel] {
		subscriber <- message
	}
	lock.RUnlock()
	response.Header().Set("Content-Type", "application/json")
	io.WriteString(response, `{"epoch":"0","offset":0}`)
}

func main() {
	http.HandleFunc("/v1/channels/", publish)
	http.HandleFunc("/", func(response http.ResponseWriter, _ *http.Request) {
		response.Header().Set("Content-Type", "text/plain")
		io.WriteString(response, "ok\n")
	})
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}
