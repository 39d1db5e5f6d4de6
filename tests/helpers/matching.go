// Go's own answer to "does this pattern match in this text", a JSON line at a time.
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"regexp"
)

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<24)
	out := json.NewEncoder(os.Stdout)
	for in.Scan() {
		var asked struct {
			Pattern string
			Texts   []string
		}
		if json.Unmarshal(in.Bytes(), &asked) != nil {
			os.Exit(1)
		}
		answer := []bool{}
		compiled, err := regexp.Compile(asked.Pattern)
		if err == nil {
			for _, text := range asked.Texts {
				answer = append(answer, compiled.MatchString(text))
			}
			out.Encode(answer)
		} else {
			out.Encode(nil)
		}
	}
}
