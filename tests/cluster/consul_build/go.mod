module litefs-django/tests/consul

go 1.14

require github.com/hashicorp/consul v1.8.7
