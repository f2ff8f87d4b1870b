// Command promql evaluates expressions over given series, with Prometheus' own engine.
//
// In, as JSON on stdin: a list of cases. Out, as JSON on stdout: for each case the values at its end, by their labels.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

const step = time.Minute

type testCase struct {
	Series []string `json:"series"` // as promtool's tests write them, such as `up{job="a"} 0+1x10`: a value a minute
	Expr   string   `json:"expr"`
}

// sample is one value of one series.
type sample struct {
	t int64
	f float64
}

func (s sample) T() int64                      { return s.t }
func (s sample) ST() int64                     { return 0 }
func (s sample) F() float64                    { return s.f }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample           { return s }

// given holds all series of a case.
type given struct {
	storage.Querier
	series []storage.Series
}

func (g given) Select(_ context.Context, _ bool, _ *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
	found := &set{next: -1}
	for _, one := range g.series {
		if matches(one.Labels(), ms) {
			found.series = append(found.series, one)
		}
	}
	return found
}

// set is what was found, one after another.
type set struct {
	series []storage.Series
	next   int
}

func (s *set) Next() bool                        { s.next++; return s.next < len(s.series) }
func (s *set) At() storage.Series                { return s.series[s.next] }
func (s *set) Err() error                        { return nil }
func (s *set) Warnings() annotations.Annotations { return nil }

func matches(l labels.Labels, ms []*labels.Matcher) bool {
	for _, m := range ms {
		if !m.Matches(l.Get(m.Name)) {
			return false
		}
	}
	return true
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "promql:", err)
		os.Exit(1)
	}
}

func run() error {
	var cases []testCase
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		return err
	}
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute})
	answers := []map[string]string{}
	for _, one := range cases {
		answer, err := evaluate(engine, one)
		if err != nil {
			return fmt.Errorf("%s: %w", one.Expr, err)
		}
		answers = append(answers, answer)
	}
	return json.NewEncoder(os.Stdout).Encode(answers)
}

func evaluate(engine *promql.Engine, one testCase) (map[string]string, error) {
	all := given{Querier: storage.NoopQuerier()}
	var end int64
	for _, written := range one.Series {
		lbls, values, err := parser.NewParser(parser.Options{}).ParseSeriesDesc(written)
		if err != nil {
			return nil, err
		}
		var samples []chunks.Sample
		for n, value := range values {
			end = max(end, int64(n)*step.Milliseconds())
			if !value.Omitted {
				samples = append(samples, sample{int64(n) * step.Milliseconds(), value.Value})
			}
		}
		all.series = append(all.series, storage.NewListSeries(lbls, samples))
	}
	ctx := context.Background()
	queryable := storage.QueryableFunc(func(int64, int64) (storage.Querier, error) { return all, nil })
	query, err := engine.NewInstantQuery(ctx, queryable, nil, one.Expr, time.UnixMilli(end))
	if err != nil {
		return nil, err
	}
	vector, err := query.Exec(ctx).Vector()
	if err != nil {
		return nil, err
	}
	answer := map[string]string{}
	for _, found := range vector {
		answer[found.Metric.String()] = fmt.Sprintf("%.4g", found.F)
	}
	return answer, nil
}
