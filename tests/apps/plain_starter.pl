#!/usr/bin/perl
# A server that was written for Server::Starter, with that module's own function to find its sockets.
use strict;
use warnings;
use IO::Handle;
use Server::Starter qw(server_ports);

my $ports = server_ports();
for my $address (sort keys %$ports) {
    fork and next;
    open my $listener, '+<&=', $ports->{$address} or die "$address: $!";
    while (accept my $connection, $listener) {
        sysread $connection, my $request, 4096;
        my $body = "address=$address generation=$ENV{SERVER_STARTER_GENERATION}";
        syswrite $connection, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
        close $connection;
    }
    exit 1;
}
1 while wait > 0;
