// Reads cumulative profiles as Alloy does, one scrape after the other, and writes the
// differences Alloy would push. Its own code checks and subtracts; this only feeds it.
package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"

	"stroboscope.test/alloy/fastdelta"
)

func main() {
	types := map[string][]fastdelta.ValueType{
		"memory": {{Type: "alloc_objects", Unit: "count"}, {Type: "alloc_space", Unit: "bytes"}},
		"mutex":  {{Type: "contentions", Unit: "count"}, {Type: "delay", Unit: "nanoseconds"}},
	}
	computer := fastdelta.NewDeltaComputer(types[os.Args[1]]...)
	for _, name := range os.Args[2:] {
		if err := scrape(computer, name); err != nil {
			fmt.Fprintln(os.Stderr, name, err)
			os.Exit(1)
		}
	}
}

func scrape(computer *fastdelta.DeltaComputer, name string) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := validateProfileData(data, "application/octet-stream"); err != nil {
		return err
	}
	reader, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return err
	}
	raw, err := io.ReadAll(reader)
	if err != nil {
		return err
	}
	var delta bytes.Buffer
	writer := gzip.NewWriter(&delta)
	if err := computer.Delta(raw, writer); err != nil {
		return err
	}
	if err := writer.Close(); err != nil {
		return err
	}
	return os.WriteFile(name+".delta", delta.Bytes(), 0o600)
}

func isGzipData(data []byte) bool {
	return bytes.HasPrefix(data, []byte{0x1f, 0x8b})
}
