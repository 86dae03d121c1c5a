// Answers each datagram with its pid and what came.
const socket = require('dgram').createSocket('udp4');
socket.on('message', (text, from) => socket.send(`${process.pid} ${text}`, from.port, from.address));
socket.bind(Number(process.env.PORT), '127.0.0.1');
