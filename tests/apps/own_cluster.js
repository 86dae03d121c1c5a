// An app that makes a cluster of itself when it runs alone.
const cluster = require('cluster');

if (cluster.isPrimary || cluster.isMaster && cluster.isPrimary === undefined) {
  console.log('primary');
  cluster.fork();
  cluster.fork();
} else {
  require('./hello.js');
}
