//go:build !race

package hostile_test

const slow = 1
